"""The part of a model that text uses: a wrapper of a language model without its other parts.

Wrappers of vision and audio models hold towers and projectors that a forward pass of text alone
never uses. Which parts these are is found out by such a pass on the meta device, not by their
names. A wrapper that cannot run on text alone may hold a language model that can.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from predictor.errors import reason_of
from predictor.mixture.forward import compute_here
from predictor.private.model_classes import (
    build,
    class_without,
    packages_optional,
    set_key_mapping,
)
from predictor.private.torch import TorchDispatchMode, tree_leaves
from predictor.profiling.meta_device import FAILURES, DeviceBehavior

_TOKENS = 2
"""Tokens of the forward pass that shows what text uses."""


class AbsentPart(nn.Module):
    """Takes the place of a part that text never uses."""

    _whole: Any

    def __init__(
        self, whole: PreTrainedModel | None = None, error: ImportError | None = None
    ) -> None:
        """Take the model that the part belongs to, or the error of the part's package."""
        super().__init__()
        vars(self)["_whole"] = whole  # an attribute, and no part of this one
        self._error = error

    @property
    def device(self) -> torch.device:
        """Return the device of the model, to which some models move what all parts take."""
        return self._whole.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the model."""
        return self._whole.dtype  # type: ignore[no-any-return]

    def forward(self, *_: Any, **__: Any) -> None:
        """Refuse to run.

        Raises:
            ImportError: The part's package is not installed.
            ValueError: The part was removed.
        """
        raise self._error or ValueError("a part that text does not use was called")


def is_wrapper(config: PreTrainedConfig) -> bool:
    """Return whether a config has the configs of parts in it."""
    return any(getattr(config, name, None) is not None for name in config.sub_configs)


def text_notes(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the sentence of a plan that names the parts of a wrapper that are left out."""
    absent = [name for name, part in model.named_modules() if isinstance(part, AbsentPart)]
    if not absent:
        return ()
    return (f"The model is served for its text, without {', '.join(absent)}.",)


def build_text_model(
    classes: Sequence[tuple[Any, PreTrainedConfig]], dtype: torch.dtype
) -> PreTrainedModel:
    """Return the text part of a wrapper on the meta device.

    Args:
        classes: Model classes of the task, each with its config, the best first.
        dtype: The serving dtype.

    Raises:
        ValueError: No class makes a model that runs on text alone.
        ImportError: A package is missing that text needs.
    """
    failures = []
    for model_class, config in classes:
        with packages_optional(AbsentPart):
            wrapper = build(model_class, config, dtype)
        try:
            return _reduced(wrapper, dtype)
        except _NoText as failure:
            failures.append(f"{model_class.__name__} does not run on text alone ({failure})")
        inner = _inner_model(wrapper, dtype)
        if inner is not None:
            return inner
    raise ValueError(f"{'; '.join(failures)}, and holds no language model that does")


def run_text(model: Any) -> None:
    """Run a model on the meta device on text.

    Raises:
        ImportError: Text needs a package that is not installed.
    """
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    inputs = {"input_ids": ids}
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad(), DeviceBehavior():
        model.eval()(**inputs)


class _NoText(Exception):
    """A model does not run on text alone."""


def _inner_model(wrapper: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel | None:
    """Return the largest language model in a wrapper that runs on text; None without any."""
    inner = {
        name: module
        for name, module in wrapper.named_modules()
        if name and isinstance(module, PreTrainedModel) and _is_language_model(module)
    }
    for name in sorted(inner, key=lambda name: -inner[name].num_parameters()):
        with contextlib.suppress(_NoText):
            model = _reduced(inner[name], dtype)
            set_key_mapping(model, {rf"^{re.escape(name)}\.": ""})
            return model
    return None


def _is_language_model(model: Any) -> bool:
    return bool(model.can_generate()) and model.get_output_embeddings() is not None


def _reduced(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model like this one without the parts that text never uses.

    Raises:
        _NoText: The model does not run on text alone.
        ImportError: A package is missing that text needs.
    """
    compute_here(model)
    used = _UsedWeights()
    try:
        with used:
            run_text(model)
    except RuntimeError:
        return model  # of what a real device does, not all can be done on meta
    except FAILURES as error:
        raise _NoText(reason_of(error).rstrip(".")) from None
    names = list(_unused_parts(model, "", used.storages))
    reduced = build(class_without(type(model), names, AbsentPart), model.config, dtype)
    compute_here(reduced)
    try:
        run_text(reduced)
    except FAILURES:
        return model
    return reduced


class _UsedWeights(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the storages of all tensors that operations take."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: set[torch.UntypedStorage] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves([args, kwargs or {}]):
            if isinstance(leaf, torch.nn.Parameter):
                self.storages.add(leaf.untyped_storage())
        return func(*args, **(kwargs or {}))


def _unused_parts(
    module: nn.Module, prefix: str, used: Collection[torch.UntypedStorage]
) -> Iterator[str]:
    """Yield the names of the largest parts of which no weight was used.

    Which members of a list of blocks run, and which of their experts, may depend on the text. So
    those of a list are unused only if no member of their class was used: Mllama's blocks that
    attend to an image are among those of text.
    """
    for name, child in module.named_children():
        weights = list(child.parameters())
        if not any(weight.untyped_storage() in used for weight in weights):
            if weights:
                yield prefix + name
        elif isinstance(child, nn.ModuleList):
            yield from _unused_kinds(child, f"{prefix}{name}.", used)
        else:
            yield from _unused_parts(child, f"{prefix}{name}.", used)


def _unused_kinds(
    members: nn.ModuleList, prefix: str, used: Collection[torch.UntypedStorage]
) -> Iterator[str]:
    """Yield the names of the members of a list whose class has no member that was used."""
    weights = {name: list(member.parameters()) for name, member in members.named_children()}
    kinds = {
        type(members.get_submodule(name))
        for name, own in weights.items()
        if any(weight.untyped_storage() in used for weight in own)
    }
    for name, own in weights.items():
        if own and type(members.get_submodule(name)) not in kinds:
            yield prefix + name
