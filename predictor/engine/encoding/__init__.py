"""Encoding: texts that take one forward pass each, batched by their number of tokens."""
