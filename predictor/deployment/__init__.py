"""Deployment: turn a plan into Helm values or an InferenceService."""
