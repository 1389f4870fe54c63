"""The import as a whole: a TorchServe archive becomes a directory that can be served."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.checkpoint.checkpoint import Checkpoint, open_directory
from predictor.checkpoint.positions import max_positions
from predictor.checkpoint.weight_files import read_stored
from predictor.deployment.render import (
    MODEL_URI_PLACEHOLDER,
    helm_values,
    inference_service,
    to_yaml,
)
from predictor.deployment.sizing import Requirements
from predictor.errors import ArchiveError, CheckpointError, ConfigurationError
from predictor.migration.archive_formats import open_archive
from predictor.migration.deployment import (
    comments,
    estimate_requirements,
    plan_command,
    served_bytes,
)
from predictor.migration.layout import (
    CONFIG,
    HELM_VALUES,
    INFERENCE_SERVICE,
    REPORT,
    Model,
    find_model,
)
from predictor.migration.progress import CopyProgress
from predictor.migration.report import Report
from predictor.migration.staging import staged, write_errors
from predictor.migration.torchserve_archive import SETUP_CONFIG, TorchServeArchive
from predictor.migration.torchserve_files import read_torchserve_archive
from predictor.migration.translate import Translation, translate
from predictor.quantity import format_bytes
from predictor.settings import read_settings
from predictor.tasks.loading import open_tokenizer

logger = logging.getLogger(__name__)

_BESIDE_MODEL = 1024**2
"""Bytes for the files that are written beside the model: settings, a report."""

_OWN_CODE = ("trust_remote_code", "custom code")
"""Phrases in the error of a model or tokenizer that comes with its own code."""


@dataclass(frozen=True, slots=True)
class _CheckedModel:
    """A model whose files are complete.

    Attributes:
        checkpoint: The checkpoint; None if it needs code that is not trusted, or is on the hub.
        weights: Bytes of all weights as stored; 0 if the model is on the hub.
        flags: Flags that serving the model needs.
    """

    checkpoint: Checkpoint | None
    weights: int
    flags: tuple[str, ...]


def import_torchserve(file: Path, into: Path, *, ts_config: Path | None = None) -> Report:
    """Make a model directory of a TorchServe archive; return the report on its settings.

    Args:
        file: The archive, which may be a directory.
        into: The directory to make.
        ts_config: The TorchServe server's configuration, or a snapshot of it.

    Raises:
        ArchiveError: The archive is broken, not safe, or holds no model that can be served.
        ConfigurationError: The directory cannot be written, or lies in the archive.
    """
    into = Path(os.path.realpath(into))
    if into.is_relative_to(os.path.realpath(file)):
        raise ConfigurationError(f"{into} lies in what is imported; name a directory outside.")
    with (
        write_errors(into),
        staged(into, last=CONFIG) as folder,
        open_archive(file) as archive,
    ):
        logger.info("Reading what TorchServe's files in %s say", file)
        name = os.path.basename(os.path.abspath(file))
        source = read_torchserve_archive(archive, name, ts_config)
        with find_model(archive, source) as model:
            _check_settings(translate(source, model_id=model.model_id))
            _copy(model, folder, into)
            return _complete(folder, into, source, model)


def _check_settings(translation: Translation) -> None:
    """Check that the settings are valid, before a byte is copied."""
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
    needed = sum(model.archive.space_for(path, folder) for path in model.files) + _BESIDE_MODEL
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigurationError(
            f"The model takes {format_bytes(needed, round_up=True)} in {into.parent}, and "
            f"{format_bytes(free)} are free there."
        )


def _complete(folder: Path, into: Path, source: TorchServeArchive, model: Model) -> Report:
    """Check the copied model, and write the other files."""
    logger.info("Checking that it can be served")
    checked = _CheckedModel(None, 0, ()) if model.model_id else _check_model(folder, source.name)
    checkpoint = checked.checkpoint
    positions = None if checkpoint is None else max_positions(checkpoint.config)
    translation = translate(
        source,
        positions=positions,
        model_id=model.model_id,
        continues_prompts=checkpoint is None or checkpoint.task == "text_generation",
    )
    _write_json(folder / SETUP_CONFIG, translation.setup_config)
    steps, notes = _write_deployment(folder, into, source, translation, checked)
    report = Report(source.name, str(into), translation.rows, notes, steps)
    _write(folder / REPORT, report.markdown())
    return report


def _check_model(folder: Path, name: str) -> _CheckedModel:
    try:
        stored = read_stored(folder)
        weights = 0 if stored is None else stored.weight_bytes
        flags = ("--allow_pickle",) if stored is not None and stored.kind == "pickle" else ()
        try:
            checkpoint = open_directory(folder, allow_pickle=True)
            open_tokenizer(folder, trust_remote_code=False)
        except CheckpointError as error:
            if stored is None or not any(phrase in str(error) for phrase in _OWN_CODE):
                raise
            return _CheckedModel(None, weights, (*flags, "--trust_remote_code"))
        return _CheckedModel(checkpoint, weights, flags)
    except CheckpointError as error:
        reason = str(error).replace(f"{folder}/", "").replace(str(folder), "its model")
        raise ArchiveError(f"{name} cannot be served: {reason}") from None


def _write_deployment(
    folder: Path,
    into: Path,
    source: TorchServeArchive,
    translation: Translation,
    checked: _CheckedModel,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the deployment files; return the next steps and the notes for the report."""
    settings = read_settings({"model_dir": str(folder)}, environ={})
    directory = shlex.quote(str(into))
    stored = None if checked.checkpoint is None else checked.checkpoint.dtype
    weights = served_bytes(checked.weights, stored, settings)
    requirements = estimate_requirements(translation, settings, weights)
    plan = plan_command(requirements.model_id or directory, translation.gpus)
    lines = comments(source.name, requirements, weights, plan, checked.flags)
    _write(folder / HELM_VALUES, to_yaml(lines, helm_values(requirements)) + "\n")
    _write(folder / INFERENCE_SERVICE, to_yaml(lines, inference_service(requirements)) + "\n")
    notes = tuple(
        f"it is served with {flag} only: say it if you trust its author" for flag in checked.flags
    )
    return _next_steps(directory, requirements, translation.name, checked.flags), notes


def _next_steps(
    directory: str, requirements: Requirements, name: str, flags: Sequence[str]
) -> tuple[str, str, str]:
    """Return the commands that serve the model, try it and install it in a cluster."""
    serve = " ".join(["predictor serve --model_dir", directory, *flags])
    try_it = f"curl -T sample_text.txt http://localhost:8080/predictions/{name}"
    install = f"helm install {requirements.resource_name} helm/ --values {directory}/{HELM_VALUES}"
    if requirements.model_id is None:
        install += f" --set model.uri={MODEL_URI_PLACEHOLDER}"
    install += "".join(f" --set settings.{flag.removeprefix('--')}=true" for flag in flags)
    return serve, try_it, install


def _write_json(file: Path, value: dict[str, Any]) -> None:
    _write(file, json.dumps(value, indent=2) + "\n")


def _write(file: Path, text: str) -> None:
    with file.open("x", encoding="utf-8") as stream:
        stream.write(text)
