"""Checkpoints: what is known of a model's files before a weight is read."""
