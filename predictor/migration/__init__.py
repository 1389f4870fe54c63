"""Import TorchServe archives and settings into a model directory. Never runs while serving."""
