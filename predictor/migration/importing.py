"""The import as a whole: an archive of TorchServe's becomes a directory that can be served."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.checkpoint.checkpoint import Checkpoint, known_positions, open_directory
from predictor.checkpoint.safetensors_header import read_stored
from predictor.deployment.render import (
    WHERE_THE_MODEL_LIES,
    as_yaml,
    helm_values,
    inference_service,
)
from predictor.deployment.sizing import Needs, title_of
from predictor.errors import ArchiveError, CheckpointError, ConfigurationError
from predictor.migration.archive import open_archive
from predictor.migration.deployment import comments, needs_of, plan_command, served_bytes
from predictor.migration.layout import (
    CONFIG,
    GENERATION_CONFIG,
    HELM_VALUES,
    INFERENCE_SERVICE,
    REPORT,
    Model,
    find_model,
)
from predictor.migration.progress import CopyProgress
from predictor.migration.report import Report
from predictor.migration.staging import staged
from predictor.migration.torchserve_archive import (
    SETUP_CONFIG,
    TorchServeArchive,
    parse_json,
    read_torchserve_archive,
)
from predictor.migration.translate import Translation, translate
from predictor.quantity import format_bytes
from predictor.settings import read_settings
from predictor.tasks.loading import open_tokenizer

logger = logging.getLogger(__name__)

_BESIDES = 1024**2
"""Bytes for what is written beside the model: settings, a report."""

_OWN_CODE = ("trust_remote_code", "custom code")
"""What the sentence has of a model, or a tokenizer, that comes with code of its own."""

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True, slots=True)
class _Checked:
    """A model whose files are complete.

    Attributes:
        checkpoint: What was found; None where it needs code that is not trusted, or is fetched.
        weights: Bytes of all weights as they are stored; 0 where the model is fetched.
        flags: What must be said to serve it.
    """

    checkpoint: Checkpoint | None
    weights: int
    flags: tuple[str, ...]


def import_torchserve(file: Path, into: Path, *, ts_config: Path | None = None) -> Report:
    """Makes a model directory of an archive of TorchServe's; returns what became of its settings.

    Args:
        file: The archive, or the directory that is one.
        into: The directory to make.
        ts_config: TorchServe's own configuration, or a snapshot of it.

    Raises:
        ArchiveError: The archive is broken, not safe, or no model that can be served.
        ConfigurationError: The directory cannot be written, or lies in the archive.
    """
    into = Path(os.path.realpath(into))
    if into.is_relative_to(os.path.realpath(file)):
        raise ConfigurationError(f"{into} lies in what is imported; name a directory outside.")
    with (
        _writing(into),
        staged(into, last=CONFIG) as folder,
        open_archive(file) as archive,
    ):
        logger.info("Reading what TorchServe's files in %s say", file)
        legacy = read_torchserve_archive(
            archive, os.path.basename(os.path.abspath(file)), ts_config
        )
        with find_model(archive, legacy) as model:
            _check_settings(translate(legacy, model_id=model.model_id))
            _copy(model, folder, into)
            return _completed(folder, into, legacy, model)


@contextlib.contextmanager
def _writing(into: Path) -> Iterator[None]:
    """Says in a sentence why the target cannot be written; reading has sentences of its own."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{into} cannot be written: {error.strerror}.") from error


def _check_settings(translation: Translation) -> None:
    """Checks, before a byte is copied, that the settings will be taken."""
    try:
        read_settings({**translation.setup_config, "model_dir": os.devnull}, environ={})
    except ConfigurationError as error:
        raise ArchiveError(f"{SETUP_CONFIG} cannot be taken over: {error}") from None


def _copy(model: Model, folder: Path, into: Path) -> None:
    _check_space(model, folder, into)
    size = sum(model.archive.members[path].size for path in model.files)
    logger.info("Taking %d files of the model over, %s", len(model.files), format_bytes(size))
    with CopyProgress(size) as progress:
        for path, target in model.files.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            model.archive.copy(path, folder / target, progress.add)


def _check_space(model: Model, folder: Path, into: Path) -> None:
    needed = sum(model.archive.space_for(path, folder) for path in model.files) + _BESIDES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigurationError(
            f"The model takes {format_bytes(needed, round_up=True)} in {into.parent}, and "
            f"{format_bytes(free)} are free there."
        )


def _completed(folder: Path, into: Path, legacy: TorchServeArchive, model: Model) -> Report:
    """Checks what was copied, and writes the rest."""
    logger.info("Checking that it can be served")
    checked = _Checked(None, 0, ()) if model.model_id else _checked(folder, legacy.name)
    checkpoint = checked.checkpoint
    positions = None if checkpoint is None else known_positions(checkpoint.config)
    translation = translate(legacy, positions=positions, model_id=model.model_id)
    _write_json(folder / SETUP_CONFIG, translation.setup_config)
    if translation.generation:
        _write_generation(folder, translation.generation, checkpoint)
    steps, notes = _deployed(folder, into, legacy, translation, checked)
    report = Report(legacy.name, str(into), translation.rows, notes, steps)
    _write(folder / REPORT, report.markdown())
    return report


def _checked(folder: Path, name: str) -> _Checked:
    try:
        stored = read_stored(folder)
        weights = 0 if stored is None else stored.weight_bytes
        flags = ("--allow_pickle",) if stored is not None and stored.kind == "pickle" else ()
        try:
            checkpoint = open_directory(folder, allow_pickle=True)
            open_tokenizer(folder, trust_remote_code=False)
        except CheckpointError as error:
            if stored is None or not any(words in str(error) for words in _OWN_CODE):
                raise
            return _Checked(None, weights, (*flags, "--trust_remote_code"))
        return _Checked(checkpoint, weights, flags)
    except CheckpointError as error:
        said = str(error).replace(f"{folder}/", "").replace(str(folder), "its model")
        raise ArchiveError(f"{name} cannot be served: {said}") from None


def _write_generation(folder: Path, said: dict[str, Any], checkpoint: Checkpoint | None) -> None:
    """Writes a new file: that of the model may be linked to the archive's."""
    file = folder / GENERATION_CONFIG
    if file.exists():
        base = parse_json(file.read_bytes(), GENERATION_CONFIG)
        file.unlink()
    else:
        # What transformers takes from the config where there is no such file.
        found = (
            {name: getattr(checkpoint.config, name, None) for name in _IDS} if checkpoint else {}
        )
        base = {name: value for name, value in found.items() if value is not None}
    _write_json(file, base | said)


def _deployed(
    folder: Path, into: Path, legacy: TorchServeArchive, translation: Translation, checked: _Checked
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Writes what a cluster is asked for; returns what follows, and what else is to be known."""
    settings = read_settings({"model_dir": str(folder)}, environ={})
    directory = shlex.quote(str(into))
    serve = " ".join(["predictor serve --model_dir", directory, *checked.flags])
    try_it = f"curl -T sample_text.txt http://localhost:8080/predictions/{translation.name}"
    notes = tuple(
        f"it is served with {flag} only: say it if you trust its author" for flag in checked.flags
    )
    stored = None if checked.checkpoint is None else checked.checkpoint.dtype
    weights = served_bytes(checked.weights, stored, settings)
    needs = needs_of(translation, settings, weights)
    plan = plan_command(needs.model_id or directory, translation.gpus)
    lines = comments(legacy.name, needs, weights, plan, checked.flags)
    _write_deployment(folder, needs, lines)
    install = f"helm install {title_of(translation.name)} helm/ --values {directory}/{HELM_VALUES}"
    if needs.model_id is None:
        install += f" --set model.uri={WHERE_THE_MODEL_LIES}"
    install += "".join(f" --set settings.{flag.removeprefix('--')}=true" for flag in checked.flags)
    return (serve, try_it, install), notes


def _write_deployment(folder: Path, needs: Needs, lines: Sequence[str]) -> None:
    _write(folder / HELM_VALUES, as_yaml(lines, helm_values(needs)) + "\n")
    _write(folder / INFERENCE_SERVICE, as_yaml(lines, inference_service(needs)) + "\n")


def _write_json(file: Path, value: dict[str, Any]) -> None:
    _write(file, json.dumps(value, indent=2) + "\n")


def _write(file: Path, text: str) -> None:
    with file.open("x", encoding="utf-8") as stream:
        stream.write(text)
