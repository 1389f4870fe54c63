"""Encoding: texts that are read in one forward pass each, batched by their number of tokens."""
