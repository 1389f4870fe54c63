"""The mapping of each key in TorchServe's files, a module for each file. Pure functions."""
