"""Text Generation Inference's API, for clients that cannot be changed."""
