"""The files that hold a checkpoint's weights, from their names and headers; no weight is read.

As in transformers, a single file is preferred to several with an index, and safetensors to pickles.
But a single file that is damaged, or holds fewer tensors than the indexed ones, is not the model.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from predictor.checkpoint.placeholders import refuse_placeholder
from predictor.checkpoint.safetensors_header import read_header
from predictor.dtypes import BY_CODE
from predictor.errors import CheckpointError

_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"

_LEGACY_PICKLE = b"\x80"
"""The first byte of a pickle that is in no zip archive, as PyTorch wrote it before 1.6."""


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A checkpoint's files.

    Attributes:
        kind: ``"safetensors"`` or ``"pickle"`` (``.bin`` files).
        files: The files that hold the weights.
        weight_bytes: Bytes of all tensors; for pickles, which have no header, bytes of the files.
        dtype: torch's name of the floating dtype of most bytes; None for pickles.
        is_floating: Whether every tensor is in a dtype that models can be served in; True for
            pickles, of which nobody knows.
        unused: The name of a file or an index of other weights in the directory; None without any.
    """

    kind: str
    files: tuple[Path, ...]
    weight_bytes: int
    dtype: str | None
    is_floating: bool = True
    unused: str | None = None


def read_stored(model_dir: Path) -> StoredWeights | None:
    """Return the weights in a model directory; None if there are none.

    Raises:
        CheckpointError: The index names a file that is missing or outside of the directory, or a
            file is damaged.
    """
    return _safetensors(model_dir) or _pickles(model_dir)


def _safetensors(model_dir: Path) -> StoredWeights | None:
    single, index = model_dir / _SAFETENSORS, _index(model_dir, _SAFETENSORS)
    if not single.is_file():
        return _from_headers(_indexed(index)) if index.is_file() else None
    if not index.is_file() or not _is_complete(index):
        return _from_headers((single,))
    shards = _indexed(index)
    if single in shards:
        return _from_headers(shards)
    indexed = _count_readable(shards)
    if indexed > _count_readable((single,)):
        return _from_headers(shards, unused=single.name)
    return _from_headers((single,), unused=index.name if indexed else None)


def _pickles(model_dir: Path) -> StoredWeights | None:
    single, index = model_dir / _PICKLE, _index(model_dir, _PICKLE)
    if single.is_file():
        files: tuple[Path, ...] = (single,)
    elif index.is_file():
        files = _indexed(index)
    else:
        return None
    for file in files:
        _check_pickle(file)
    return StoredWeights("pickle", files, sum(file.stat().st_size for file in files), None)


def _check_pickle(file: Path) -> None:
    """Check what can be known of a ``.bin`` file without running it.

    Raises:
        CheckpointError: It is cut short, or no file of PyTorch.
    """
    refuse_placeholder(file)
    with file.open("rb") as stream:
        start = stream.read(2)
    if start == b"PK" and not zipfile.is_zipfile(file):
        raise CheckpointError(f"{file} is cut short: it lacks the end of its archive.")
    if start != b"PK" and not start.startswith(_LEGACY_PICKLE):
        raise CheckpointError(f"{file} is no file of PyTorch, or is damaged.")


def _index(model_dir: Path, single: str) -> Path:
    return model_dir / f"{single}.index.json"


def _indexed(index: Path) -> tuple[Path, ...]:
    """Return the files that an index names."""
    names = _names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} is incomplete: {missing[0]}"
            + (f" and {len(missing) - 1} more files are" if len(missing) > 1 else " is")
            + f" named in {index.name} but not there."
        )
    return tuple(index.parent / name for name in names)


def _is_complete(index: Path) -> bool:
    """Return whether all files of an index are there."""
    try:
        return bool(_indexed(index))
    except CheckpointError:
        return False


def _names(index: Path) -> list[str]:
    refuse_placeholder(index)
    try:
        names = sorted(
            {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        )
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{index} is damaged: it holds no JSON object weight_map.") from None
    if not names:
        raise CheckpointError(f"{index} is damaged: it names no file.")
    if not all(map(stays_within, names)):
        raise CheckpointError(f"{index} names a file outside of its directory.")
    return names


def stays_within(path: str) -> bool:
    """Return whether a relative path stays within its folder."""
    return not path.startswith("/") and ".." not in path.split("/")


def _count_readable(files: tuple[Path, ...]) -> int:
    """Return the number of tensors in files; 0 if one of the files is damaged."""
    try:
        return sum(len(read_header(file)) for file in files)
    except CheckpointError:
        return 0


def _from_headers(files: tuple[Path, ...], unused: str | None = None) -> StoredWeights:
    by_dtype: dict[str, int] = {}
    for file in files:
        for entry in read_header(file).values():
            begin, end = entry["data_offsets"]
            by_dtype[entry["dtype"]] = by_dtype.get(entry["dtype"], 0) + end - begin
    floating = {
        BY_CODE[code].name: count
        for code, count in by_dtype.items()
        if code in BY_CODE and BY_CODE[code].is_floating
    }
    dtype = max(floating, key=lambda name: floating[name]) if floating else None
    is_floating = all(code in BY_CODE and BY_CODE[code].is_floating for code in by_dtype)
    size = sum(by_dtype.values())
    return StoredWeights("safetensors", files, size, dtype, is_floating, unused)
