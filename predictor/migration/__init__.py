"""From TorchServe: its archives and settings become a model directory. Runs before serving only."""
