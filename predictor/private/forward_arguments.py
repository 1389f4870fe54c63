"""The arguments that a model's forward pass takes, also through ``**kwargs`` to a parent class."""

from __future__ import annotations

import inspect

from torch import nn


def forward_arguments(model: nn.Module) -> frozenset[str]:
    """Return the names of the arguments that ``model.forward`` takes.

    A class of a checkpoint's own code often names a few and gives the others to its parent as
    ``**kwargs``. So as long as a class takes such, the names of the next one count, too.
    """
    names = set(inspect.signature(model.forward).parameters)
    for parent in type(model).__mro__:
        own = vars(parent).get("forward")
        if own is None:
            continue
        parameters = inspect.signature(own).parameters
        names.update(parameters)
        if all(one.kind is not one.VAR_KEYWORD for one in parameters.values()):
            break
    return frozenset(names - {"self"})
