"""What becomes of each key of TorchServe's files, a module for each file. Pure functions."""
