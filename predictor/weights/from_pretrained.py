"""transformers' own loading, as far as it is used: parts go where a map says, and no further.

transformers has Accelerate attach its hooks to whatever is offloaded before it gives the model
back. It is kept from that, because blocks that are streamed by us need none; what is left is
attached afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from transformers import PreTrainedModel, modeling_utils
from transformers.utils import logging as transformers_logging

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.task_detection import factory_of
from predictor.errors import CheckpointError, LoadFailed, reason_of
from predictor.placement.plan import Placement
from predictor.weights.progress import Progress

logger = logging.getLogger(__name__)


class Dispatch:
    """Takes the place of transformers' own call of Accelerate, which comes too early for us.

    Attributes:
        index: Where transformers found each parameter on disk.
    """

    def __init__(self, original: Callable[..., None]) -> None:
        self.index: Mapping[str, Mapping[str, str]] = {}
        self._original = original
        self._asked: tuple[Any, ...] | None = None

    def __call__(
        self,
        model: Any,
        quantizer: Any,
        _device_map: Any,
        folder: Any,
        index: Mapping[str, Mapping[str, str]] | None,
        offload_buffers: bool,
    ) -> None:
        """Is called in place of ``accelerate_dispatch``, with its arguments, and keeps them."""
        self.index = index or {}
        self._asked = (model, quantizer, folder, self.index, offload_buffers)

    def attach(self, placement: Placement, streamed: Sequence[str]) -> None:
        """Has Accelerate attach its hooks to all that is not streamed by us, if it is elsewhere."""
        placed = placement.device_map.items()
        elsewhere = {device for name, device in placed if name not in streamed}
        elsewhere -= {placement.execution_device}
        if self._asked is None or not elsewhere:
            return
        model, quantizer, folder, index, offload_buffers = self._asked
        device_map = dict(placement.device_map)
        with warnings.catch_warnings():
            # A map may name tensors that lie in no module of their own, such as a bias of logits.
            warnings.filterwarnings("ignore", "The following device_map keys do not match")
            self._original(model, quantizer, device_map, folder, index, offload_buffers)
        for name in streamed:
            remove_hook_from_submodules(model.get_submodule(name))


@contextlib.contextmanager
def _dispatching() -> Iterator[Dispatch]:
    where: Any = modeling_utils
    original = where.accelerate_dispatch
    stand_in = where.accelerate_dispatch = Dispatch(original)
    try:
        yield stand_in
    finally:
        where.accelerate_dispatch = original


def from_pretrained(
    checkpoint: Checkpoint,
    placement: Placement,
    device_map: Mapping[str, int | str],
    folder: Path | None,
    *,
    trust_remote_code: bool,
    progress: Progress,
) -> tuple[PreTrainedModel, Dispatch]:
    """Returns the model, and what attaches Accelerate's hooks to it.

    Args:
        checkpoint: Files on local disk.
        placement: The plan.
        device_map: Where each part goes; parts on ``"meta"`` go nowhere.
        folder: Where parts on disk that have to be written anew are put.
        trust_remote_code: Whether code that comes with the model may run.
        progress: Is told of every tensor.

    Raises:
        CheckpointError: The checkpoint lacks weights of the model, or has them in other shapes.
        LoadFailed: Reading failed in another way.
    """
    with _reporting(progress), _dispatching() as dispatch:
        model = _read(
            checkpoint, placement, device_map, folder, trust_remote_code=trust_remote_code
        )
    return model, dispatch


def _read(
    checkpoint: Checkpoint,
    placement: Placement,
    device_map: Mapping[str, int | str],
    folder: Path | None,
    *,
    trust_remote_code: bool,
) -> PreTrainedModel:
    try:
        loaded: Any = factory_of(checkpoint.task, checkpoint.config).from_pretrained(
            checkpoint.path,
            config=checkpoint.config,
            dtype=getattr(torch, placement.dtype),
            device_map=dict(device_map),
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
    lacking = _lacking(info, checkpoint.task)
    if lacking:
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(lacking)} weights of {placement.architecture}, "
            f"{lacking[0]} among them."
        )
    return model.eval()  # type: ignore[no-any-return]


def _lacking(info: Mapping[str, Any], task: str) -> list[str]:
    """The weights that are missing, or those of another shape.

    Vectors are made of the states below a pooler, which models with another head have none of.
    """
    missing = [
        name
        for name in info["missing_keys"]
        if not (task == "text_embedding" and name.startswith("pooler."))
    ]
    return sorted(missing) or sorted(str(key) for key in info["mismatched_keys"])


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
