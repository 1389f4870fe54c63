"""Finds a model's files, in a directory or on the hub, and what may be used of them.

On the hub the small files come first and the weights after the placement was decided, so that a
model that does not fit is refused before a weight is read.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, PreTrainedConfig

from predictor.checkpoint.safetensors_header import StoredWeights, read_stored
from predictor.checkpoint.task_detection import find_task
from predictor.dtypes import name_of
from predictor.errors import CheckpointError, ConfigurationError, HubUnreachable, reason_of

_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_WANTED = {"safetensors": "model*.safetensors", "pickle": "pytorch_model*.bin"}
_POSITIONS = ("max_position_embeddings", "n_positions")
_CONTEXT = (*_POSITIONS, "seq_length", "max_sequence_length", "max_seq_len")
_LONGEST_DEFAULT = 8192
_HUB_SECONDS = 10.0
"""For the first answer of the hub; without it a silent network would hang the start for ever."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be planned and loaded.

    Attributes:
        path: Its directory.
        config: Its config.
        kind: ``"safetensors"`` or ``"pickle"``.
        stored: What lies on disk; None while the weights are still on the hub.
        task: What it is served for.
        model_id: Where on the hub it comes from; None for a local directory.
        revision: The commit on the hub.
    """

    path: Path
    config: PreTrainedConfig
    kind: str
    stored: StoredWeights | None
    task: str = "text_generation"
    model_id: str | None = None
    revision: str | None = None

    @property
    def dtype(self) -> str | None:
        """The dtype (torch's name) that the checkpoint is stored in, where it can be told."""
        if self.stored is not None and self.stored.dtype is not None:
            return self.stored.dtype
        declared = getattr(self.config, "dtype", None)
        return None if declared is None else name_of(declared)


def open_directory(
    path: Path,
    *,
    task: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    needs_weights: bool = True,
) -> Checkpoint:
    """Returns the checkpoint in a local directory, or, to plan with, of a bare ``config.json``.

    Args:
        path: The directory, or the file.
        task: What the model is to be served for; None for what it was made for.
        allow_pickle: Whether ``.bin`` files may be read.
        trust_remote_code: Whether code that comes with the model may run.
        needs_weights: Whether there must be weights.

    Raises:
        CheckpointError: Files are missing or damaged, of a kind that is not allowed, or of a model
            for another task.
    """
    if not path.is_dir() and (needs_weights or not path.is_file()):
        raise CheckpointError(f"There is no model directory {path}.")
    config = read_config(path, trust_remote_code=trust_remote_code)
    purpose = find_task(config, path, task)
    stored = read_stored(path)
    if stored is None and not needs_weights:
        return Checkpoint(path, config, "safetensors", None, purpose)
    if stored is None:
        raise CheckpointError(
            f"{path} holds no weights: neither model.safetensors nor pytorch_model.bin, "
            "nor an index of one."
        )
    _check_kind(stored.kind, str(path), allow_pickle)
    return Checkpoint(path, config, stored.kind, stored, purpose)


def read_config(path: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Returns the config of a model directory, or of a bare ``config.json``.

    Raises:
        CheckpointError: There is none, it cannot be read, needs code that is not trusted, or
            describes a quantised model.
    """
    file = path if path.is_file() else path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"There is no config.json in {path}.")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    # A config may be wrong in any way, and transformers complains in as many.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{file} needs Python code that comes with the model; "
                "run it with --trust_remote_code if you trust its author."
            ) from None
        raise CheckpointError(f"{file} cannot be used: {reason_of(error)}") from None
    if getattr(config, "quantization_config", None):
        raise CheckpointError(
            f"{file} describes a quantised model; only unquantised checkpoints can be served."
        )
    return config  # type: ignore[no-any-return]


def context_length(config: PreTrainedConfig) -> int:
    """Returns the default `max_model_len`: the model's own context, at most 8192 tokens."""
    return min(known_positions(config) or _stated(config, _CONTEXT) or 2048, _LONGEST_DEFAULT)


def known_positions(config: PreTrainedConfig) -> int | None:
    """Returns how many positions can be served; None where the model knows none (ALiBi).

    They are those that it was made for; with LongRoPE those before it was extended. Beyond these
    transformers turns all positions of a pass by other angles (``longrope_frequency_update`` in
    ``modeling_rope_utils.py``): what is cached no longer fits, and neither do neighbours.
    """
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    found = _stated(config, _POSITIONS)
    if rope.get("rope_type") == "longrope" and rope.get("original_max_position_embeddings"):
        return min(int(rope["original_max_position_embeddings"]), found or _LONGEST_DEFAULT)
    return found


def _stated(config: PreTrainedConfig, names: Iterable[str]) -> int | None:
    """The first of these numbers that the config of the text model states."""
    text = config.get_text_config(decoder=True)
    found = (getattr(text, name, None) for name in names)
    return next((int(number) for number in found if number), None)


def open_hub(
    model_id: str,
    revision: str | None,
    *,
    task: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Returns a checkpoint on the hub, of which only the small files were fetched.

    The token is taken from ``HF_TOKEN``, the cache's place from ``HF_HOME``.

    Raises:
        HubUnreachable: The hub cannot be reached.
        CheckpointError: There is no such model, or no weights of an allowed kind.
    """
    with _hub_errors(model_id, revision):
        info = HfApi().model_info(model_id, revision=revision, timeout=_HUB_SECONDS)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        kind = _kind(names)
        if kind is None:
            raise CheckpointError(f"{model_id} holds no safetensors and no pytorch_model.bin.")
        _check_kind(kind, model_id, allow_pickle)
        wanted = [*_SMALL, *(("*.py",) if trust_remote_code else ())]
        path = snapshot_download(model_id, revision=info.sha, allow_patterns=wanted)
    config = read_config(Path(path), trust_remote_code=trust_remote_code)
    purpose = find_task(config, Path(path), task)
    return Checkpoint(Path(path), config, kind, None, purpose, model_id, info.sha)


def fetch_weights(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with its weights on local disk, fetched from the hub if need be.

    Raises:
        HubUnreachable: The hub cannot be reached.
        CheckpointError: What was fetched is incomplete.
    """
    if checkpoint.stored is not None or checkpoint.model_id is None:
        return checkpoint
    with _hub_errors(checkpoint.model_id, checkpoint.revision):
        path = snapshot_download(
            checkpoint.model_id,
            revision=checkpoint.revision,
            allow_patterns=[_WANTED[checkpoint.kind]],
        )
    stored = read_stored(Path(path))
    if stored is None:
        raise CheckpointError(f"{checkpoint.model_id} holds no weights that can be used.")
    return replace(checkpoint, path=Path(path), stored=stored)


def _kind(names: Iterable[str]) -> str | None:
    listed = list(names)
    return next((kind for kind, glob in _WANTED.items() if fnmatch.filter(listed, glob)), None)


def _check_kind(kind: str, where: str, allow_pickle: bool) -> None:
    if kind == "pickle" and not allow_pickle:
        raise CheckpointError(
            f"{where} holds only .bin files, which can run code when they are read; convert it "
            "to safetensors, or run with --allow_pickle if you trust its author."
        )


class _hub_errors:  # noqa: N801 - read as a statement: `with _hub_errors(...)`
    """Turns the hub's errors into ours, one sentence each."""

    def __init__(self, model_id: str, revision: str | None) -> None:
        self._what = f"{model_id} (revision {revision})" if revision else model_id

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, GatedRepoError):
            raise ConfigurationError(
                f"{self._what} is gated: accept its terms on the hub and set HF_TOKEN."
            ) from None
        if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
            raise CheckpointError(
                f"The hub has no {self._what}, or HF_TOKEN gives no access to it."
            ) from None
        if isinstance(error, HFValidationError):
            raise CheckpointError(f"{self._what} is no name of a model on the hub.") from None
        if isinstance(error, HTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled):
            raise HubUnreachable(
                f"{self._what} must come from the hub at {constants.ENDPOINT}, which cannot be "
                "reached; mount the model and give --model_dir, or let this pod reach the hub."
            ) from None
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{self._what} cannot be kept in {constants.HF_HOME}: {error.strerror}."
            ) from None
