"""Verification: what can be known to be wrong with a checkpoint before a weight is read.

- `weights`: holds the stored tensors' names and shapes against the model.
"""
