"""Quantised checkpoints: which layers of a model are packed, and how a model gets them.

How a layer is unpacked and computed is the business of `linear`.
"""
