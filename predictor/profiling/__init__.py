"""Profiling: runs a model on the meta device to measure its memory, without reading a weight."""
