"""Accelerate's hooks around a module's forward pass, and its copy of arguments to a device.

Read in accelerate 1.15.0, ``accelerate/hooks.py`` and ``accelerate/utils/operations.py``.
"""

from __future__ import annotations

from accelerate.hooks import (
    ModelHook,
    add_hook_to_module,
    remove_hook_from_module,
    remove_hook_from_submodules,
)
from accelerate.utils import send_to_device

__all__ = [
    "ModelHook",
    "add_hook_to_module",
    "remove_hook_from_module",
    "remove_hook_from_submodules",
    "send_to_device",
]
