"""The engine: many requests, one model."""
