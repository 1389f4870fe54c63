"""Configs of bitsandbytes."""

from __future__ import annotations

from predictor.linear.formats.bitsandbytes import BitsAndBytes4, BitsAndBytes8
from predictor.linear.published.config import Config
from predictor.linear.published.layer_names import as_transformers
from predictor.linear.scheme import Scheme

_HEAD = "lm_head"
"""What transformers leaves out if a config names nothing."""


def bitsandbytes(config: Config) -> Scheme:
    """Return the scheme of method ``bitsandbytes``.

    Raises:
        CheckpointError: A value cannot be served.
    """
    key = "llm_int8_skip_modules"
    names = config.names(key) if key in config else (_HEAD,)
    left_out = as_transformers(names, config.where)
    if _flag(config, "load_in_8bit"):
        return Scheme.uniform(BitsAndBytes8(), left_out)
    if not _flag(config, "load_in_4bit"):
        raise config.error("load_in_4bit", "is not true, and load_in_8bit is not either")
    kind = config.text("bnb_4bit_quant_type", "fp4")
    if kind not in ("nf4", "fp4"):
        raise config.error("bnb_4bit_quant_type", f"is {kind!r} instead of nf4 or fp4")
    storage = config.text("bnb_4bit_quant_storage", "uint8")
    if storage != "uint8":
        raise config.error("bnb_4bit_quant_storage", f"is {storage}, and only uint8 can be served")
    nested = config.flag("bnb_4bit_use_double_quant", default=False)
    return Scheme.uniform(BitsAndBytes4(kind, nested=nested), left_out)


def _flag(config: Config, key: str) -> bool:
    """Return a flag that transformers writes with and without an underscore before it."""
    return config.flag(key, config.flag(f"_{key}", default=False))
