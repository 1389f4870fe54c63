"""Verification: what can be known to be wrong with a checkpoint before a weight is read.

- `model`: runs all checks, and makes the model on the meta device what the files say that it is.
- `weights`: holds the stored tensors' names and shapes against the model.
- `ties`: finds tied parameters that are stored with other values.
- `tensors`: the stored tensors, of files of any kind.
"""
