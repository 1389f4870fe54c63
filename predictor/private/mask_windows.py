"""The windows of the attention masks that a model has transformers make.

A config may name a window that no mask of its model heeds. transformers' own cache then forgets
tokens that the model attends to while it reads a prompt. Read in transformers 5.23.0:
``masking_utils.py``, whose functions for windows and chunks give their size as ``local_size``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def noted_windows() -> Iterator[set[int]]:
    """Note the window of each mask that is made within this context, in the set that it gives."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    functions: Any = ALL_MASK_ATTENTION_FUNCTIONS
    windows: set[int] = set()

    def noting(make_mask: Callable[..., Any]) -> Callable[..., Any]:
        def make_and_note(*args: Any, local_size: int | None = None, **kwargs: Any) -> Any:
            if local_size is not None:
                windows.add(local_size)
            return make_mask(*args, local_size=local_size, **kwargs)

        return make_and_note

    before = dict(functions)
    try:
        for name, make_mask in before.items():
            functions[name] = noting(make_mask)
        yield windows
    finally:
        for name in before:
            del functions[name]
