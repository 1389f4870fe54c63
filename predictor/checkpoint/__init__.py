"""Checkpoints: the facts about a model's files that need no weight.

- `checkpoint`: finds a model's files, in a directory or on the hub.
- `safetensors_header`: reads sizes and dtypes from file names and safetensors headers.
- `task_detection`: detects the task of a model from its config.
"""
