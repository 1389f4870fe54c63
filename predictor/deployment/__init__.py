"""Deployment: a plan becomes the values or the InferenceService that a cluster is given."""
