"""Measure the footprint of a model on the meta device, without reading a weight.

A model is cut into `PlacementUnit`s: its blocks, which transformers does not split among devices,
and separately embeddings, norms and head. The probes run the model to measure its KV cache and its
activations. `placement` decides where the units go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from predictor.checkpoint.task_detection import classes_for, factory_of, title_of
from predictor.dtypes import name_of
from predictor.errors import reason_of, start_error
from predictor.linear.install import install
from predictor.linear.layers import NOTHING_PACKED, PackedLayers
from predictor.mixture.forward import compute_here
from predictor.mixture.modules import find_experts, find_mixtures, names_of_experts
from predictor.placement.units import Footprint
from predictor.private.conversions import converts_weights
from predictor.private.model_classes import build
from predictor.profiling.block_calls import calls_blocks_evenly
from predictor.profiling.block_dedup import BlockDeduplicator
from predictor.profiling.blocks import find_blocks, is_encoder_decoder
from predictor.profiling.decoder_probe import probe
from predictor.profiling.encoder_decoder_probe import probe_encoder_decoder
from predictor.profiling.encoder_probe import probe_encoder
from predictor.profiling.probe import Probe
from predictor.profiling.text_model import build_text_model, is_wrapper
from predictor.profiling.unit_sizes import measure_units
from predictor.profiling.weight_reads import WeightReads


def build_on_meta(
    config: PreTrainedConfig,
    dtype: str,
    task: str = "text_generation",
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return the model for a task, on the meta device, without memory for its weights.

    Raises:
        ModelUnusable: transformers has no such architecture for this task, or its code fails.
        LoadFailed: It cannot be built because of a device, a volume or memory.
    """
    try:
        with torch.device("meta"):
            model = _build(config, getattr(torch, dtype), task, trust_remote_code)
    # Each architecture, and code that comes with a model, fails in its own way.
    except Exception as error:
        raise start_error(
            error,
            f"A {config.model_type!r} model cannot be built as a {title_of(task)}: "
            f"{reason_of(error)}",
        ) from error
    compute_here(model)
    install(model)
    return model.eval()  # type: ignore[no-any-return]


def _build(config: PreTrainedConfig, dtype: torch.dtype, task: str, trust_remote_code: bool) -> Any:
    """Return the model for a task: of code that comes with it, or of a class of transformers."""
    factory = factory_of(task, config)
    own_code = getattr(config, "auto_map", None) or {}
    if factory.__name__ in own_code and trust_remote_code:
        return factory.from_config(config, dtype=dtype, trust_remote_code=True)
    classes = classes_for(task, config)
    if not classes:
        raise ValueError("transformers has no class for that")
    return build_text_model(classes, dtype) if is_wrapper(config) else build(*classes[0], dtype)


def measure_footprint(
    model: PreTrainedModel,
    *,
    max_model_len: int,
    prefill_chunk: int,
    max_source_len: int | None = None,
    largest_chunk: int = 0,
    max_batch_size: int = 1,
    is_encoder: bool = False,
    stored_dtype: str | None = None,
    stored_kind: str = "safetensors",
    packed: PackedLayers = NOTHING_PACKED,
) -> Footprint:
    """Return the footprint of a model.

    Args:
        model: A model on the meta device, see `build_on_meta`.
        max_model_len: Tokens of the longest sequence that has to fit.
        prefill_chunk: Tokens of the largest forward pass.
        max_source_len: Tokens of the longest source of an encoder; None for `max_model_len`.
        largest_chunk: Tokens up to which that may grow, where there is memory; 0 if it may not.
        max_batch_size: Most sequences of a forward pass.
        is_encoder: Whether the model has an encoder task and generates nothing.
        stored_dtype: The dtype that the checkpoint is stored in; None if that is unknown.
        stored_kind: ``"safetensors"`` or ``"pickle"``, of which no expert can be read by itself.
        packed: The layers that stay packed.
    """
    blocks, dtype, has_slices = find_blocks(model), name_of(model.dtype), stored_kind != "pickle"
    source, largest_chunk = max_source_len or max_model_len, min(largest_chunk, max_model_len)
    measure = _choose_probe(model, source, largest_chunk, is_encoder=is_encoder)
    shape = {"max_model_len": max_model_len, "chunk": prefill_chunk, "rows": max_batch_size}
    with WeightReads(model, blocks) as watched:
        probed, by_block = measure(model, blocks, **shape)
    units = measure_units(model, blocks, probed, watched.readers, with_experts=has_slices)
    return Footprint(
        architecture=type(model).__name__,
        dtype=dtype,
        quantization=packed.title,
        quantised_to=packed.quantised_to,
        units=units,
        max_model_len=max_model_len,
        needs_cast=stored_dtype not in (None, dtype),
        needs_conversion=stored_kind == "pickle" or converts_weights(model),
        experts_in_place=_has_experts_in_place(model, blocks),
        **_sizes(probed, max_model_len, largest_chunk),
        prefill_chunk=min(prefill_chunk, max_model_len),
        by_block=by_block,
        whole_mixtures=len(find_mixtures(model, blocks)) - sum(bool(x.experts) for x in units),
    )


def _sizes(probed: Probe, max_model_len: int, largest_chunk: int) -> dict[str, Any]:
    """Return the fields of a footprint that a probe has measured."""
    return {
        "activations": probed.activations,
        "activations_per_sequence": probed.activations_per_token * max_model_len,
        "probed": probed.measured,
        "least_row_tokens": probed.least_row_tokens,
        "window": probed.window,
        "largest_chunk": largest_chunk if probed.per_chunk_token else 0,
        "activations_per_chunk_token": probed.per_chunk_token,
    }


def with_logits(footprint: Footprint, model: PreTrainedModel, positions: int) -> Footprint:
    """Return the footprint with the logits of further positions of a forward pass.

    Args:
        footprint: The footprint.
        model: The model.
        positions: How many positions, if that is above 0.
    """
    if positions <= 0:
        return footprint
    logits = positions * 4 * int(model.config.get_text_config().vocab_size)
    return replace(footprint, activations=footprint.activations + logits)


def _has_experts_in_place(model: PreTrainedModel, blocks: Sequence[str]) -> bool:
    """Return whether no weight but those of experts has to be converted."""
    experts = names_of_experts(model, (e.name for e in find_experts(model, blocks).values()))
    return not converts_weights(model, but=experts)


def _choose_probe(
    model: PreTrainedModel, source: int, largest_chunk: int, *, is_encoder: bool
) -> Callable[..., tuple[Probe, bool]]:
    if is_encoder:
        return _probe_encoder
    if is_encoder_decoder(model):
        return partial(_probe_encoder_decoder, source=source)
    return partial(_probe_decoder, largest_chunk=largest_chunk)


def _probe_decoder(
    model: PreTrainedModel,
    blocks: Sequence[str],
    *,
    max_model_len: int,
    chunk: int,
    rows: int,
    largest_chunk: int = 0,
) -> tuple[Probe, bool]:
    """Return the measured sizes, and whether every block is called as a module equally often."""
    members = [model.get_submodule(name) for name in blocks]
    deduplicator = BlockDeduplicator(members, model.config.get_text_config(decoder=True))
    chunk = min(chunk, max_model_len)
    # Models that fail if some of their blocks are not executed are run again with all of them.
    for chosen in [deduplicator, None] if deduplicator.has_duplicates else [None]:
        with _counting_calls(model, blocks) as calls:
            probed = probe(
                model,
                members,
                max_model_len=max_model_len,
                chunk=chunk,
                rows=rows,
                largest_chunk=largest_chunk,
                deduplicator=chosen,
            )
        if probed.measured:
            break
    return probed, _is_even(model, blocks, probed, calls)


def _probe_encoder(
    model: PreTrainedModel, blocks: Sequence[str], *, max_model_len: int, chunk: int, rows: int
) -> tuple[Probe, bool]:
    """Do the same for a model with an encoder task, in forward passes of `chunk` tokens."""
    with _counting_calls(model, blocks) as calls:
        probed = probe_encoder(
            model, len(blocks), max_model_len=max_model_len, tokens=chunk, rows=rows
        )
    return probed, _is_even(model, blocks, probed, calls)


def _probe_encoder_decoder(
    model: PreTrainedModel,
    blocks: Sequence[str],
    *,
    max_model_len: int,
    source: int,
    chunk: int,
    rows: int,
) -> tuple[Probe, bool]:
    """Do the same for a model with an encoder, which runs once for a sequence, and a decoder."""
    with _counting_calls(model, blocks) as calls:
        probed = probe_encoder_decoder(
            model, blocks, max_model_len=max_model_len, source=source, chunk=chunk, rows=rows
        )
    return probed, _is_even(model, blocks, probed, calls)


def _is_even(
    model: PreTrainedModel, blocks: Sequence[str], probed: Probe, calls: Mapping[str, int]
) -> bool:
    """Return whether each block was called as a module, equally often.

    Blocks without weights, which text does not use, do not count.
    """
    weighty = [name for name in blocks if list(model.get_submodule(name).parameters())]
    if not probed.measured:
        return calls_blocks_evenly(model, weighty)
    return len({calls[name] for name in weighty}) == 1 and all(calls[name] for name in weighty)


@contextlib.contextmanager
def _counting_calls(model: PreTrainedModel, blocks: Sequence[str]) -> Iterator[dict[str, int]]:
    """Count how often each block is called as a module in forward passes that are completed."""
    calls, current = dict.fromkeys(blocks, 0), dict.fromkeys(blocks, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            current[name] += 1

        return hook

    def begin(*_: Any) -> None:
        current.update(dict.fromkeys(blocks, 0))

    def complete(*_: Any) -> None:
        calls.update({name: calls[name] + current[name] for name in blocks})

    handles = [
        model.get_submodule(name).register_forward_pre_hook(count(name)) for name in blocks if name
    ]
    handles += [model.register_forward_pre_hook(begin), model.register_forward_hook(complete)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
