"""A KServe predictor for Hugging Face models that do not fit the accelerator they are given.

Importing this package imports nothing heavy: torch, transformers and kserve are loaded by the
modules that use them.
"""

__version__ = "0.1.0"
