"""Checks of folders: the offload volume and its speed, temporary files, the model."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from predictor.checkpoint.weight_files import read_stored
from predictor.doctor.check import Check, Surroundings
from predictor.errors import CheckpointError, ConfigurationError
from predictor.pod.resources import MEMORY_FILESYSTEMS, Volume
from predictor.pod.volume import read_volume
from predictor.quantity import format_bytes
from predictor.settings import Settings
from predictor.weights.remote.source import SMALL

_SAMPLE = 64 * 1024**2
"""Bytes of the file that is written and read to measure the offload volume."""

_PIECE = 1024**2

_SLOW = 200 * 10**6
"""Bytes in a second below which streaming from a volume takes minutes for a token."""


def check_offload(settings: Settings, around: Surroundings) -> Check:
    """Check that the offload volume can be written."""
    if settings.offload_folder is None:
        return Check("offload volume", "skipped", "offload_folder is not set.")
    try:
        volume = read_volume(settings.offload_folder, None, proc=around.proc)
    except ConfigurationError as error:
        return Check("offload volume", "failure", str(error), "Check the mount of offload_folder.")
    return _check_volume(volume)


def check_offload_speed(settings: Settings, around: Surroundings) -> Check:
    """Check how fast the offload volume is. Imports torch."""
    name, folder = "offload speed", settings.offload_folder
    if folder is None:
        return Check(name, "skipped", "offload_folder is not set.")
    try:
        volume = read_volume(folder, None, proc=around.proc)
    except ConfigurationError:
        return Check(name, "skipped", "The volume does not answer.")
    if not volume.writable or volume.available <= 2 * _SAMPLE:
        return Check(name, "skipped", f"There is no room for a file of {format_bytes(_SAMPLE)}.")
    return _check_speed(volume.path)


def _check_volume(volume: Volume) -> Check:
    name, owner = "offload volume", f"user {os.getuid()} in group {os.getgid()}"
    if not volume.writable:
        finding = f"{volume.path} cannot be written by {owner}."
        remedy = "Set fsGroup in the pod's security context, or the owner on the storage's side."
        return Check(name, "failure", finding, remedy)
    finding = (
        f"{volume.path} ({volume.filesystem}) has {format_bytes(volume.available)} free and is "
        "writable."
    )
    if volume.filesystem in MEMORY_FILESYSTEMS:
        remedy = "It is in memory, which the limit counts: mount a claim or a disk there."
        return Check(name, "warning", finding, remedy)
    if volume.available <= 2 * _SAMPLE:
        return Check(name, "warning", finding, "It is nearly full: free it, or enlarge the claim.")
    return Check(name, "ok", finding)


def _check_speed(folder: Path) -> Check:
    name = "offload speed"
    try:
        written, measured = _measure(folder)
    except OSError as error:
        finding = f"A file of {format_bytes(_SAMPLE)} cannot be used there: {error.strerror}."
        return Check(name, "failure", finding, "Check quotas and the mount's options.")
    finding = f"Writes at {format_bytes(written)}/s, reads at {format_bytes(measured)}/s."
    if measured >= _SLOW:
        return Check(name, "ok", finding)
    remedy = "Each token reads all blocks on disk: use a local NVMe disk, or keep more in memory."
    return Check(name, "warning", finding, remedy)


def _measure(folder: Path) -> tuple[int, int]:
    """Return the bytes in a second of a write and of a read that bypasses the page cache."""
    from predictor.weights.store.packing import measure_file

    piece = os.urandom(_PIECE)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".predictor-doctor-") as file:
        began = time.monotonic()
        for _ in range(_SAMPLE // _PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        written = _SAMPLE / max(time.monotonic() - began, 1e-9)
        return int(written), int(measure_file(Path(file.name)))


def check_temporary(around: Surroundings) -> Check:
    """Check that temporary files can be written."""
    try:
        with tempfile.NamedTemporaryFile(dir=around.temporary) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        finding = f"{around.temporary} cannot be written: {error.strerror}."
        return Check(
            "temporary files", "failure", finding, "Mount an emptyDir at /tmp (the chart does)."
        )
    return Check("temporary files", "ok", f"{around.temporary} is writable.")


def check_model_directory(settings: Settings) -> Check:
    """Check that the model's files are there, and that those in the folder itself may be opened.

    Of weights the headers are read, as at a start.
    """
    name, folder = "model directory", settings.model_dir
    if settings.model_uri is not None:
        return Check(name, "skipped", "The model comes from model_uri.")
    if settings.model_id is not None:
        return Check(name, "skipped", f"model_id is {settings.model_id}.")
    config = folder / "config.json"
    try:
        config.stat()
        for file in sorted(folder.iterdir()):
            if any(file.match(pattern) for pattern in SMALL) and not file.is_dir():
                file.open("rb").close()
    except FileNotFoundError as error:
        remedy = "Mount the model there, or set model_dir, model_id or model_uri."
        return Check(name, "failure", f"There is no {error.filename}.", remedy)
    except OSError as error:
        finding = f"{error.filename} cannot be opened: {error.strerror}."
        remedy = f"Let user {os.getuid()} or group {os.getgid()} open it."
        return Check(name, "failure", finding, remedy)
    return _check_weights(name, folder)


def _check_weights(name: str, folder: Path) -> Check:
    try:
        stored = read_stored(folder)
    except CheckpointError as error:
        remedy = (
            f"Let user {os.getuid()} or group {os.getgid()} open it. If it is damaged or not "
            "there, copy it again."
        )
        return Check(name, "failure", str(error), remedy)
    if stored is None:
        remedy = "Mount the whole model there, with model.safetensors or the index of its files."
        return Check(name, "failure", f"{folder} holds no weights.", remedy)
    size = format_bytes(stored.weight_bytes)
    finding = (
        f"{folder} has {size} of weights. Their files, and those of the configuration and "
        "tokenizer beside them, may be opened. Folders below were not checked."
    )
    return Check(name, "ok", finding)
