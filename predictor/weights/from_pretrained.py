"""transformers' own loading: each part goes where a device map says, and no further.

Before `from_pretrained` returns, transformers has Accelerate attach hooks to every part that is on
another device than the first GPU. Parts that we stream need none of them. So the attaching is held
back, and done afterwards for the parts on further GPUs.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.safetensors_header import read_header
from predictor.errors import CheckpointError, PredictorError, reason_of, start_error
from predictor.linear.layers import NOTHING_PACKED, PackedLayers
from predictor.placement.plan import Placement
from predictor.private.accelerate import remove_hook_from_submodules
from predictor.private.loading import complete_ties, files_replaced, kept_apart, open_replaced
from predictor.private.model_classes import key_mapping_of
from predictor.private.quantizers import one_tensor_at_a_time, quantization_config
from predictor.private.torch import own_parameters
from predictor.private.transformers import (
    accelerate_dispatch,
    dispatch_replaced,
    weights_reported,
)
from predictor.quantization.replacement import pack_layers
from predictor.sentences import lacks_weights
from predictor.weights.progress import Progress
from predictor.weights.remote.opened import OpenedShard, uses_of_tensors

logger = logging.getLogger(__name__)


class DeferredDispatch:
    """Stands in for transformers' call of Accelerate, and makes that call later.

    Attributes:
        index: For each parameter on disk, its file and its name in that file.
    """

    def __init__(self) -> None:
        self.index: Mapping[str, Mapping[str, str]] = {}
        self._arguments: tuple[Any, ...] | None = None

    def __call__(
        self,
        model: PreTrainedModel,
        quantizer: Any,
        _device_map: Any,
        folder: Any,
        index: dict[str, Mapping[str, str]] | None,
        offload_buffers: bool,
    ) -> None:
        """Keep the arguments of transformers' call."""
        self.index = complete_ties(model, index or {})
        self._arguments = (model, quantizer, folder, self.index, offload_buffers)

    def attach(self, placement: Placement) -> None:
        """Attach Accelerate's hooks, which move data to the GPU of each part and back.

        Parts that are streamed, and experts that are read one by one, get no hooks.
        """
        placed, streamed = placement.device_map.items(), placement.offloaded
        devices = {device for name, device in placed if name not in streamed}
        if self._arguments is None or devices <= {placement.execution_device}:
            return
        model, quantizer, folder, index, offload_buffers = self._arguments
        with warnings.catch_warnings():
            # A map may name tensors that lie in no module of their own, such as a bias of logits.
            warnings.filterwarnings("ignore", "The following device_map keys do not match")
            device_map = dict(placement.device_map)
            with _without_parameters(model, [slots.module for slots in placement.experts]):
                accelerate_dispatch(model, quantizer, device_map, folder, index, offload_buffers)
        modules = dict(model.named_modules(remove_duplicate=False))
        for name in (*streamed, *(slots.module for slots in placement.experts)):
            if name in modules:  # and not a single tensor
                remove_hook_from_submodules(modules[name])


@contextlib.contextmanager
def _without_parameters(model: PreTrainedModel, modules: Sequence[str]) -> Iterator[None]:
    """Take the own parameters of modules away within this context."""
    held = [own_parameters(model.get_submodule(name)) for name in modules]
    copies = [dict(parameters) for parameters in held]
    for parameters in held:
        parameters.clear()
    try:
        yield
    finally:
        for parameters, copy in zip(held, copies, strict=True):
            parameters.update(copy)


def from_pretrained(
    checkpoint: Checkpoint,
    placement: Placement,
    device_map: Mapping[str, int | str],
    folder: Path | None,
    *,
    skeleton: PreTrainedModel,
    packed: PackedLayers,
    trust_remote_code: bool,
    progress: Progress,
) -> tuple[PreTrainedModel, DeferredDispatch]:
    """Load a model, and return it with the deferred call of Accelerate.

    Args:
        checkpoint: Files on local disk.
        placement: The plan.
        device_map: The device of each part; parts on ``"meta"`` are not loaded.
        folder: The folder for parts on disk that have to be converted.
        skeleton: The model on the meta device, whose class and config are loaded.
        packed: The layers that stay packed.
        trust_remote_code: Whether code that comes with the model may run.
        progress: Counts every tensor.

    Raises:
        CheckpointError: The checkpoint lacks weights of the model, or has them in other shapes.
        LoadFailed: A device, a volume or memory failed.
        ModelUnusable: Loading failed for another reason.
    """
    dispatch = DeferredDispatch()
    try:
        with contextlib.ExitStack() as changes:
            changes.enter_context(weights_reported(progress.done))
            changes.enter_context(dispatch_replaced(dispatch))
            changes.enter_context(kept_apart(checkpoint.separate))
            changes.enter_context(_files(checkpoint))
            changes.enter_context(_tensors(checkpoint, skeleton, device_map))
            if packed.quantised_to or checkpoint.remote is not None:
                changes.enter_context(one_tensor_at_a_time())
            model = _load(
                *(checkpoint, placement, device_map, folder),
                skeleton=skeleton,
                packed=packed,
                trust_remote_code=trust_remote_code,
            )
    finally:
        progress.end()
    return model, dispatch


def _files(checkpoint: Checkpoint) -> contextlib.AbstractContextManager[None]:
    if checkpoint.stored is None:
        return contextlib.nullcontext()
    has_headers = checkpoint.kind == "safetensors"
    files = checkpoint.stored.files
    return files_replaced({file: [*read_header(file)] if has_headers else [] for file in files})


def _tensors(
    checkpoint: Checkpoint, skeleton: PreTrainedModel, device_map: Mapping[str, int | str]
) -> contextlib.AbstractContextManager[None]:
    """Have tensors fetched as they are read, if they are not on local disk."""
    if checkpoint.remote is None:
        return contextlib.nullcontext()
    use_of = uses_of_tensors(skeleton, device_map)
    return open_replaced(partial(OpenedShard, remote=checkpoint.remote, use_of=use_of))


def _load(
    checkpoint: Checkpoint,
    placement: Placement,
    device_map: Mapping[str, int | str],
    folder: Path | None,
    *,
    skeleton: PreTrainedModel,
    packed: PackedLayers,
    trust_remote_code: bool,
) -> PreTrainedModel:
    try:
        model_class: Any = type(skeleton)
        loaded: Any = model_class.from_pretrained(
            checkpoint.path,
            config=skeleton.config,
            key_mapping=key_mapping_of(skeleton),
            dtype=getattr(torch, placement.dtype),
            device_map=dict(device_map),
            offload_folder=None if folder is None else str(folder),
            use_safetensors=checkpoint.kind == "safetensors",
            weights_only=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **_quantization(packed),
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{checkpoint.path} holds a .bin file that is damaged or does more than hold weights."
        ) from error
    except PredictorError:  # of weights that are fetched meanwhile
        raise
    # Files, devices and volumes fail in many ways, and libraries raise errors of many classes.
    except Exception as error:
        logger.exception("from_pretrained failed")
        raise start_error(
            error,
            f"The weights in {checkpoint.path} cannot be loaded: {reason_of(error, most=300)}",
        ) from error
    model, info = loaded
    missing = _missing_weights(info, checkpoint.task)
    if missing:
        raise CheckpointError(f"{lacks_weights(checkpoint.path, placement.architecture, missing)}.")
    return model.eval()  # type: ignore[no-any-return]


def _quantization(packed: PackedLayers) -> dict[str, Any]:
    if packed == NOTHING_PACKED:
        return {}
    return {"quantization_config": quantization_config(lambda model: pack_layers(model, packed))}


def _missing_weights(info: Mapping[str, Any], task: str) -> list[str]:
    """Return the weights that are missing, or else those of another shape.

    Embeddings are made of the states below a pooler. Checkpoints with another head have no pooler.
    """
    missing = [
        name
        for name in info["missing_keys"]
        if not (task == "text_embedding" and name.startswith("pooler."))
    ]
    return sorted(missing) or sorted(str(key) for key in info["mismatched_keys"])
