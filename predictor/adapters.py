"""Open the LoRA adapters that the settings name, for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from predictor.checkpoint.adapters import Adapter, locate_adapter, read_adapter
from predictor.dtypes import item_bytes
from predictor.engine.generation.adapters import check_adapters, count_adapter_bytes
from predictor.errors import ConfigurationError
from predictor.placement.units import Footprint
from predictor.sentences import quote
from predictor.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TEMPORARIES = 2
"""Tensors as large as a layer's inputs or outputs that a pass with adapters takes besides: the rows
of one adapter, and what is added to them."""


def open_adapters(settings: Settings, model: PreTrainedModel, task: str) -> tuple[Adapter, ...]:
    """Return the adapters, which suit the model; those on the hub are fetched.

    Args:
        settings: The settings.
        model: The model, on the meta device.
        task: Its task.

    Raises:
        CheckpointError: An adapter is damaged, or is for another model.
        ConfigurationError: The model takes none, or a name is taken.
        HubUnreachable: An adapter is on the hub, which cannot be reached.
    """
    if settings.lora_modules and task != "text_generation":
        raise ConfigurationError(f"lora_modules is for text_generation; this task is {task}.")
    for setting, names in (
        ("model_name", (settings.model_name,)),
        ("model_aliases", settings.model_aliases),
    ):
        taken = next((name for name in names if name in settings.lora_modules), None)
        if taken is not None:
            raise ConfigurationError(
                f"lora_modules: {quote(taken)} is the name of the model itself ({setting})."
            )
    adapters = tuple(
        read_adapter(name, locate_adapter(source)) for name, source in settings.lora_modules.items()
    )
    check_adapters(model, adapters)
    return adapters


def with_adapters(footprint: Footprint, adapters: Sequence[Adapter], tokens: int) -> Footprint:
    """Return a footprint with the memory of adapters, beside the activations.

    Args:
        footprint: The footprint of the model alone.
        adapters: The adapters.
        tokens: Most tokens of a forward pass.
    """
    if not adapters:
        return footprint
    itemsize = item_bytes(footprint.dtype)
    widest = max(
        max(layer.in_features, layer.out_features)
        for adapter in adapters
        for layer in adapter.layers.values()
    )
    beside = count_adapter_bytes(adapters, itemsize) + _TEMPORARIES * itemsize * tokens * widest
    return replace(footprint, activations=footprint.activations + beside)
