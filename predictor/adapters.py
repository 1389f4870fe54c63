"""The LoRA adapters of a model: those that the settings name, and those loaded while it serves."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from predictor.checkpoint.adapters import Adapter, locate_adapter, read_adapter
from predictor.dtypes import item_bytes, name_of
from predictor.engine.encoding.engine import EncoderEngine
from predictor.engine.generation.adapters import (
    LoadedAdapters,
    check_adapters,
    count_adapter_bytes,
)
from predictor.engine.generation.engine import Engine
from predictor.errors import CheckpointError, ConfigurationError
from predictor.placement.units import Footprint
from predictor.quantity import format_bytes
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


def with_adapters(
    footprint: Footprint,
    adapters: Sequence[Adapter],
    tokens: int,
    *,
    lora_memory: int,
    model: PreTrainedModel,
) -> Footprint:
    """Return a footprint with the memory of adapters, beside the activations.

    Args:
        footprint: The footprint of the model alone.
        adapters: The adapters that are there at the start.
        tokens: Most tokens of a forward pass.
        lora_memory: Bytes for adapters that are loaded while the model serves.
        model: The model, on any device.
    """
    widest = max((adapter.widest for adapter in adapters), default=0)
    if lora_memory:
        widest = max(widest, _widest_layer(model))
    if not widest:
        return footprint
    itemsize = item_bytes(footprint.dtype)
    beside = count_adapter_bytes(adapters, itemsize) + _TEMPORARIES * itemsize * tokens * widest
    return replace(
        footprint,
        activations=footprint.activations + beside + lora_memory,
        activations_per_chunk_token=footprint.activations_per_chunk_token
        + _TEMPORARIES * itemsize * widest,
    )


class RuntimeAdapters:
    """Loads adapters beside a model that serves; an `AdapterLoader`."""

    def __init__(self, loaded: LoadedAdapters, lora_memory: int) -> None:
        """Begin without any.

        Args:
            loaded: The adapters of the model's start, to which others are added.
            lora_memory: Most bytes of those.
        """
        self._loaded = loaded
        self._most = lora_memory
        self._widest = _widest_layer(loaded.model)
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, engine: Engine | EncoderEngine, lora_memory: int) -> RuntimeAdapters | None:
        """Return the adapters beside an engine's model; None if none may be loaded."""
        loaded = getattr(engine.runner, "adapters", None) if isinstance(engine, Engine) else None
        return cls(loaded, lora_memory) if loaded is not None and lora_memory else None

    def load(self, key: str, source: str) -> None:
        """Load an adapter.

        Args:
            key: A new name for it.
            source: A directory or a repository on the hub.

        Raises:
            CheckpointError: The adapter is damaged, is for another model, or takes too much memory.
            HubUnreachable: It is on the hub, which cannot be reached.
            LoadFailed: Its weights cannot be read.
        """
        adapter = read_adapter(key, locate_adapter(source))
        check_adapters(self._loaded.model, (adapter,))
        if adapter.widest > self._widest:
            raise CheckpointError(
                "Adapters of the output embeddings are loaded at the start alone (lora_modules)."
            )
        itemsize = item_bytes(name_of(self._loaded.dtype))
        size = count_adapter_bytes((adapter,), itemsize)
        with self._lock:
            free = self._most - sum(self._bytes.values())
            if size > free:
                raise CheckpointError(
                    f"The adapter takes {format_bytes(size, round_up=True)}, and of lora_memory "
                    f"({format_bytes(self._most)}) {format_bytes(free)} are free; unload another."
                )
            self._bytes[key] = size
        try:
            self._loaded.load(adapter)
        except BaseException:
            self.unload(key)
            raise

    def unload(self, key: str) -> None:
        """Forget an adapter that no sequence uses; do nothing if it is not loaded."""
        self._loaded.unload(key)
        with self._lock:
            self._bytes.pop(key, None)


def _widest_layer(model: Any) -> int:
    """Return the most inputs or outputs of a linear layer other than the output embeddings."""
    head = model.get_output_embeddings()
    layers = (module for module in model.modules() if module is not head)
    return max(
        max(getattr(layer, "in_features", 0), getattr(layer, "out_features", 0)) for layer in layers
    )
