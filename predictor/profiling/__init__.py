"""Profiling: run a model on the meta device to measure its memory, without reading a weight.

`footprint.measure_footprint` is the entry. It cuts a model into placement units and has one of the
three probes measure KV cache and activations: of a decoder, an encoder, or both together.
"""
