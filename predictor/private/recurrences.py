"""The functions by which transformers' models compute one step of their recurrences.

Models of a family call a function of their own module, which has the same name and code in all
modules that have it. Read in transformers 5.23.0: ``models/mamba/modeling_mamba.py``,
``models/mamba2/modeling_mamba2.py``, ``models/qwen3_next/modeling_qwen3_next.py`` and
``models/kimi_linear/modeling_kimi_linear.py``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn


class StepFunctions:
    """The functions of a model's modules that compute a step, each with its replacement."""

    def __init__(self, model: nn.Module, replacements: Mapping[str, Callable[..., Any]]) -> None:
        """Find the functions of a model.

        Args:
            model: The model.
            replacements: What replaces them, by their names.
        """
        modules = {sys.modules[type(module).__module__] for module in model.modules()}
        self._replaced = [
            (module, name, getattr(module, name), replacement)
            for module in modules
            for name, replacement in replacements.items()
            if hasattr(module, name)
        ]

    @contextlib.contextmanager
    def replaced(self) -> Iterator[None]:
        """Have models call the replacements within this context."""
        try:
            for module, name, _, replacement in self._replaced:
                setattr(module, name, replacement)
            yield
        finally:
            for module, name, own, _ in self._replaced:
                setattr(module, name, own)
