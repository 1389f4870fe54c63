"""transformers' experts interface.

Read in transformers 5.23.0: ``integrations/moe.py``. `transformers` in this package declares what
is used of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def uses_experts_interface(module: Any) -> bool:
    """Return whether a module is experts that any registered function may compute.

    The class then has the decorator ``use_experts_implementation`` (``integrations/moe.py``), whose
    `forward` asks an interface of functions. A subclass with a `forward` of its own asks none.
    """
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "experts_interface" in code.co_freevars


def register_experts_function(name: str, function: Callable[..., Any]) -> None:
    """Register a function that computes the experts of a mixture (``integrations/moe.py``).

    Args:
        name: The name by which a config selects it, as ``experts_implementation``.
        function: Called with the experts module, the hidden states of shape (tokens, hidden), and
            the indices and the weights of the chosen experts, both of shape (tokens, chosen).
    """
    from transformers.integrations import moe

    interface: Any = moe.ALL_EXPERTS_FUNCTIONS
    interface.register(name, function)


def select_experts_function(module: Any, name: str) -> None:
    """Have a registered function compute an experts module, and all that share its config."""
    module.config._experts_implementation = name


def selected_experts_function(module: Any) -> str | None:
    """Return the name of the function that computes an experts module; None for its own code."""
    name: str | None = module.config._experts_implementation
    return name
