"""Accelerate's hooks around a module's forward pass, and its copy of arguments to a device.

Read in accelerate 1.15.0, ``accelerate/hooks.py`` and ``accelerate/utils/operations.py``.
"""

from __future__ import annotations

from predictor.private.versions import Interface, Library, check, uncalled

ACCELERATE = Library("accelerate", "1.15", "1.16")

INTERFACES = (
    Interface("accelerate.hooks", "add_hook_to_module", ("module", "hook")),
    Interface("accelerate.hooks", "remove_hook_from_module", ("module",)),
    Interface("accelerate.hooks", "remove_hook_from_submodules", ("module",)),
    Interface("accelerate.hooks", "ModelHook.init_hook", ("module",)),
    Interface("accelerate.hooks", "ModelHook.pre_forward", ("module",)),
    Interface("accelerate.hooks", "ModelHook.post_forward", ("module", "output")),
    Interface("accelerate.utils", "send_to_device", ("tensor", "device", "skip_keys")),
    *uncalled("accelerate.hooks", "ModelHook.no_grad"),
)

check(ACCELERATE, *INTERFACES)

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
