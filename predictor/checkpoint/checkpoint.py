"""Finds a model's files, in a directory or on the hub, and refuses files that may not be used.

From the hub the small files are fetched first, and the weights after the placement was decided. So
a model that does not fit is refused before a weight is fetched. Loading weights is left to
`weights`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from predictor.checkpoint.adapters import base_of
from predictor.checkpoint.hub import Repository, Snapshot, missing_files
from predictor.checkpoint.quantization import Quantization, take_quantization
from predictor.checkpoint.remote_files import RemoteWeights
from predictor.checkpoint.task_detection import find_task
from predictor.checkpoint.weight_files import StoredWeights, read_stored
from predictor.dtypes import name_of
from predictor.errors import CheckpointError, reason_of

_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_WEIGHTS = {"safetensors": "model*.safetensors", "pickle": "pytorch_model*.bin"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be planned and loaded.

    Attributes:
        path: The model's directory.
        config: The model's config.
        kind: ``"safetensors"`` or ``"pickle"``.
        stored: The weights on local disk; None while they are still on the hub.
        task: The task that the model is served for.
        model_id: The model's id on the hub; None for a local directory.
        revision: The commit on the hub; None for a local directory.
        ref: The branch or tag on the hub that was resolved to the commit; None without one.
        quantization: How the weights are quantised; None if the checkpoint does not say so.
        separate: Names of parameters that the config ties to others and that are not tied, because
            the files have other values for them.
        remote: Fetches the weights while they are loaded; None if they are fetched before, or lie
            on local disk.
    """

    path: Path
    config: PreTrainedConfig
    kind: str
    stored: StoredWeights | None
    task: str = "text_generation"
    model_id: str | None = None
    revision: str | None = None
    ref: str | None = None
    quantization: Quantization | None = None
    separate: frozenset[str] = frozenset()
    remote: RemoteWeights | None = None

    @property
    def has_weights(self) -> bool:
        """Whether it can be served: it has weights, here or on the hub, and is no bare config."""
        return self.stored is not None or self.model_id is not None

    @property
    def dtype(self) -> str | None:
        """Torch's name of the dtype that the checkpoint is stored in; None if it is unknown."""
        if self.stored is not None and self.stored.dtype is not None:
            return self.stored.dtype
        return declared_dtype(self.config)


def open_directory(
    path: Path,
    *,
    task: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    needs_weights: bool = True,
) -> Checkpoint:
    """Return the checkpoint in a local directory, or for planning that of a bare ``config.json``.

    Args:
        path: The directory, or the file.
        task: The task to serve the model for; None detects it.
        allow_pickle: Whether ``.bin`` files may be read.
        trust_remote_code: Whether code that comes with the model may run.
        needs_weights: Whether weights are required. Planning needs none.

    Raises:
        CheckpointError: Files are missing, damaged, or of a kind that is not allowed, or the model
            does not suit the task.
    """
    if not path.is_dir() and (needs_weights or not path.is_file()):
        raise CheckpointError(f"There is no model directory {path}.")
    config = read_config(path, trust_remote_code=trust_remote_code)
    task = find_task(config, path, task)
    quantization = take_quantization(config, path)
    stored = read_stored(path)
    if stored is None and not needs_weights:
        return Checkpoint(path, config, "safetensors", None, task, quantization=quantization)
    if stored is None:
        _refuse_gguf(each.name for each in path.iterdir())
        raise CheckpointError(
            f"{path} holds no weights: neither model.safetensors nor pytorch_model.bin, "
            "nor an index of one."
        )
    _check_kind(stored.kind, str(path), allow_pickle)
    return Checkpoint(path, config, stored.kind, stored, task, quantization=quantization)


def _refuse_adapter(path: Path) -> None:
    base = base_of(path)
    if base is not None:
        raise CheckpointError(
            f"{path} is a LoRA adapter and no model; serve {base}, and name the adapter in "
            "lora_modules."
        )


def read_config(path: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the config of a model directory, or of a bare ``config.json``.

    Raises:
        CheckpointError: The config is missing, cannot be read, or needs code that is not trusted.
    """
    file = path if path.is_file() else path / "config.json"
    if not file.is_file():
        _refuse_gguf(each.name for each in path.iterdir())
        _refuse_adapter(path)
        raise CheckpointError(f"There is no config.json in {path}.")
    try:
        config = AutoConfig.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    # A wrong config makes transformers raise errors of many classes.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{file} needs Python code that comes with the model; "
                "run it with --trust_remote_code if you trust its author."
            ) from None
        raise CheckpointError(f"{file} cannot be used: {reason_of(error)}") from None
    if hasattr(config, "rescale_every"):
        # RWKV would divide weights in place at its first forward pass, for the range of float16:
        # a weight that is streamed is divided once, and comes undivided the next time.
        config.rescale_every = 0
    return config  # type: ignore[no-any-return]


def declared_dtype(config: PreTrainedConfig) -> str | None:
    """Return torch's name of the dtype that a config names, itself or for its text model."""
    parts = (config, config.get_text_config(decoder=True))
    dtypes = (getattr(part, "dtype", None) for part in parts)
    return next((name_of(dtype) for dtype in dtypes if dtype is not None), None)


def open_hub(
    model_id: str,
    revision: str | None,
    *,
    task: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Return a checkpoint on the hub, after fetching its small files only.

    ``HF_TOKEN`` holds the token, and ``HF_HOME`` the folder of the cache. Without the hub, a commit
    that is complete in the cache is served.

    Raises:
        HubUnreachable: The hub cannot be asked, and the cache is incomplete.
        CheckpointError: There is no such model, or it has no weights of an allowed kind.
    """
    repository = Repository(model_id, revision)
    patterns = [*_SMALL, *(("*.py",) if trust_remote_code else ())]
    snapshot = repository.open(patterns, lambda cached: _lacking(cached, patterns))
    kind = _kind(snapshot.names)
    if kind is None:
        _refuse_gguf(snapshot.names)
        raise CheckpointError(f"{model_id} holds no safetensors and no pytorch_model.bin.")
    _check_kind(kind, model_id, allow_pickle)
    config = read_config(snapshot.path, trust_remote_code=trust_remote_code)
    task = find_task(config, snapshot.path, task)
    return Checkpoint(
        *(snapshot.path, config, kind, None, task, model_id, snapshot.commit, repository.ref),
        take_quantization(config, snapshot.path),
    )


def fetch_weights(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with its weights on local disk, fetching them from the hub if needed.

    Raises:
        HubUnreachable: The hub cannot be reached.
        CheckpointError: The fetched files are incomplete.
    """
    if checkpoint.stored is not None or checkpoint.model_id is None:
        return checkpoint
    repository = Repository(checkpoint.model_id, checkpoint.ref or checkpoint.revision)
    commit, path = str(checkpoint.revision), checkpoint.path
    lacks = _missing_weights(path, checkpoint.kind)
    if lacks is not None:
        path = repository.fetch(commit, [_WEIGHTS[checkpoint.kind]], lacks)
    stored = read_stored(path)
    if stored is None:
        raise CheckpointError(f"{checkpoint.model_id} holds no weights that can be used.")
    repository.remember(commit)
    return replace(checkpoint, path=path, stored=stored)


def is_cached(model_id: str, revision: str | None, *, trust_remote_code: bool = False) -> bool:
    """Return whether the hub's cache has a complete commit; the hub is not asked."""
    patterns = [*_SMALL, *(("*.py",) if trust_remote_code else ())]
    cached = Repository(model_id, revision).cached()
    return cached is not None and _lacking(cached, patterns) is None


def _lacking(snapshot: Snapshot, small: Iterable[str]) -> str | None:
    """Return the files that a commit in the cache lacks, as a phrase; None if it is complete."""
    missing = missing_files(snapshot, list(small))
    return missing or _missing_weights(snapshot.path, _kind(snapshot.names) or "safetensors")


def _missing_weights(path: Path, kind: str) -> str | None:
    """Return the weights that a commit in the cache lacks, as a phrase; None if it has all."""
    try:
        stored = read_stored(path)
    except CheckpointError as error:
        return f"weights ({str(error).rstrip('.')})"
    return None if stored is not None and stored.kind == kind else "its weights"


def _kind(names: Iterable[str]) -> str | None:
    listed = list(names)
    return next((kind for kind, glob in _WEIGHTS.items() if fnmatch.filter(listed, glob)), None)


def _refuse_gguf(names: Iterable[str]) -> None:
    """Refuse files of llama.cpp by their name, if there are any."""
    files = sorted(name for name in names if name.endswith(".gguf"))
    if files:
        raise CheckpointError(
            f"{files[0]} is a GGUF file, which cannot be served; serve the safetensors files of "
            "the same model, which may be quantised too."
        )


def _check_kind(kind: str, where: str, allow_pickle: bool) -> None:
    if kind == "pickle" and not allow_pickle:
        raise CheckpointError(
            f"{where} holds only .bin files, which can run code when they are read; convert it "
            "to safetensors, or run with --allow_pickle if you trust its author."
        )
