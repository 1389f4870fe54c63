"""Loads a model the way a placement says, and gives it back ready to run.

`load` is the one way from files to a model that runs; that offloaded parts are streamed by
Accelerate's hooks is known to this module alone.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from predictor.errors import CheckpointError, LoadFailed, reason_of
from predictor.placement.footprint import find_blocks
from predictor.placement.plan import Placement
from predictor.quantity import format_bytes
from predictor.weights.checkpoint import Checkpoint
from predictor.weights.progress import Progress
from predictor.weights.resident import make_resident
from predictor.weights.rewritten import rewriting

logger = logging.getLogger(__name__)


def load(
    checkpoint: Checkpoint,
    placement: Placement,
    *,
    offload_folder: Path | None,
    rewritten: bool,
    trust_remote_code: bool,
    progress: Progress,
    skeleton: PreTrainedModel,
) -> PreTrainedModel:
    """Returns the model with every part where the placement puts it, in evaluation mode.

    Exactly one forward pass may run at a time: Accelerate's hooks are not thread-safe.

    Args:
        checkpoint: Files on local disk.
        placement: Where each part goes.
        offload_folder: Where parts that have to be written anew are put.
        rewritten: Whether parts on disk have to be written anew to be streamed.
        trust_remote_code: Whether code that comes with the model may run.
        progress: Is told of every tensor.
        skeleton: The model on the meta device, for names and sizes.

    Raises:
        CheckpointError: The checkpoint lacks weights of the model, or has them in other shapes.
        LoadFailed: Reading failed in another way.
    """
    on_disk = "disk" in placement.device_map.values()
    with contextlib.ExitStack() as stack:
        folder = None
        if on_disk and rewritten:
            folder = stack.enter_context(rewriting(offload_folder, checkpoint, placement.dtype))
        blocks = find_blocks(skeleton)
        sizes = {name: tensor.nbytes for name, tensor in skeleton.named_parameters()}
        progress.begin("placing weights", sizes, blocks)
        stack.enter_context(_reporting(progress))
        model = _from_pretrained(checkpoint, placement, folder, trust_remote_code=trust_remote_code)
    copied = make_resident(model, progress, blocks=blocks)
    logger.info("Loaded: %s were read into main memory to stay", format_bytes(copied))
    return model


def _from_pretrained(
    checkpoint: Checkpoint, placement: Placement, folder: Path | None, *, trust_remote_code: bool
) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            config=checkpoint.config,
            dtype=getattr(torch, placement.dtype),
            device_map=placement.device_map,
            offload_folder=None if folder is None else str(folder),
            use_safetensors=checkpoint.kind == "safetensors",
            weights_only=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{checkpoint.path} holds a .bin file that is damaged or does more than hold weights."
        ) from error
    # Files, devices and volumes fail in any way, and the libraries complain in as many.
    except Exception as error:
        logger.exception("from_pretrained failed")
        raise LoadFailed(
            f"The weights in {checkpoint.path} cannot be loaded: {reason_of(error, most=300)}"
        ) from error
    model, info = loaded
    lacking = sorted(info["missing_keys"]) or sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(lacking)} weights of {placement.architecture}, "
            f"{lacking[0]} among them."
        )
    return model.eval()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _reporting(progress: Progress) -> Iterator[None]:
    """Lets transformers' own loop over the weights tell our progress."""

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("desc") != "Loading weights":
            return factory(*args, **kwargs)
        return _counted(args[0], progress)

    previous = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
        progress.end()


def _counted(weights: Any, progress: Progress) -> Iterator[Any]:
    for name, mapping in weights:
        yield name, mapping
        progress.done(name)
