"""Checkpoints: the facts about a model's files that need no weight.

- `checkpoint`: finds a model's files, in a directory or on the hub.
- `weight_files`: finds the files that hold the weights, by names, indexes and headers.
- `safetensors_header`: reads the header of a safetensors file.
- `placeholders`: recognises files that hold nothing, such as pointers of Git LFS.
- `task_detection`: detects the task of a model from its config.
"""
