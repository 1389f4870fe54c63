"""The weights of a checkpoint on disk, from file names and safetensors headers; no weight is read.

The safetensors format: 8 bytes of header length (little endian), then a JSON object from tensor
names to dtype, shape and offsets (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.dtypes import BY_CODE
from predictor.errors import CheckpointError

_LARGEST_HEADER = 100_000_000
"""The limit of the safetensors library itself."""


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
    """

    kind: str
    files: tuple[Path, ...]
    weight_bytes: int
    dtype: str | None
    is_floating: bool = True


def read_stored(model_dir: Path) -> StoredWeights | None:
    """Return the weights in a model directory; None if there are none.

    If both kinds are there, safetensors are preferred, as in transformers.

    Raises:
        CheckpointError: The index names a file that is missing or outside of the directory, or a
            header is damaged.
    """
    for kind, single in (("safetensors", "model.safetensors"), ("pickle", "pytorch_model.bin")):
        files = _files(model_dir, single)
        if files and kind == "safetensors":
            return _from_headers(files)
        if files:
            return StoredWeights(kind, files, sum(file.stat().st_size for file in files), None)
    return None


def _files(model_dir: Path, single: str) -> tuple[Path, ...]:
    if (model_dir / single).is_file():
        return (model_dir / single,)
    index = model_dir / f"{single}.index.json"
    if not index.is_file():
        return ()
    try:
        names = sorted(
            {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        )
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{index} is damaged: it holds no JSON object weight_map.") from None
    if not all(map(stays_within, names)):
        raise CheckpointError(f"{index} names a file outside of its directory.")
    missing = [name for name in names if not (model_dir / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{model_dir} is incomplete: {missing[0]}"
            + (f" and {len(missing) - 1} more files are" if len(missing) > 1 else " is")
            + f" named in {index.name} but not there."
        )
    return tuple(model_dir / name for name in names)


def stays_within(path: str) -> bool:
    """Return whether a relative path stays within its folder."""
    return not path.startswith("/") and ".." not in path.split("/")


def _from_headers(files: tuple[Path, ...]) -> StoredWeights:
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
    return StoredWeights("safetensors", files, sum(by_dtype.values()), dtype, is_floating)


def read_header(file: Path) -> dict[str, Any]:
    """Return a safetensors file's header: ``{name: {"dtype", "shape", "data_offsets"}}``.

    Raises:
        CheckpointError: The file is no safetensors file, or is cut short.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError("header too long")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((_end(entry) for entry in header.values()), default=0)
    except (ValueError, struct.error, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{file} is no safetensors file, or is damaged.") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    if file.stat().st_size < 8 + length + end:
        raise CheckpointError(f"{file} is cut short: fewer bytes than its header says.")
    return header  # type: ignore[no-any-return]


def data_start(file: Path) -> int:
    """Return the offset in a safetensors file from which its header's offsets count."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
    return 8 + int(length)


def _end(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    is_shape = isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape)
    if not (is_shape and isinstance(entry["dtype"], str) and 0 <= int(begin) <= int(end)):
        raise ValueError("no tensor")
    return int(end)
