"""The header of a safetensors file; no weight is read.

The safetensors format: 8 bytes of header length (little endian), then a JSON object from tensor
names to dtype, shape and offsets (https://github.com/huggingface/safetensors#format). What the
library refuses is refused here too, by the name of the file and of the tensor.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictor.checkpoint.placeholders import refuse_placeholder
from predictor.dtypes import BY_CODE
from predictor.errors import CheckpointError

_LARGEST_HEADER = 100_000_000
"""The limit of the safetensors library itself."""


def read_header(file: Path) -> dict[str, Any]:
    """Return a safetensors file's header: ``{name: {"dtype", "shape", "data_offsets"}}``.

    Raises:
        CheckpointError: The file is no safetensors file, is damaged, or is cut short.
    """
    refuse_placeholder(file)
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError("header too long")
            if 8 + length > size:
                raise CheckpointError(f"{file} is cut short: it ends within its header.")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((_end(entry) for entry in header.values()), default=0)
    except (ValueError, struct.error, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{file} is no safetensors file, or is damaged.") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    if size < 8 + length + end:
        raise CheckpointError(f"{file} is cut short: fewer bytes than its header says.")
    _check_layout(file, header, size - 8 - length)
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


def _check_layout(file: Path, header: Mapping[str, Any], size: int) -> None:
    """Check that tensors have the bytes of their shapes, and lie one behind the other to the end.

    Raises:
        CheckpointError: They do not.
    """
    previous = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        dtype = BY_CODE.get(entry["dtype"])
        if dtype is not None and end - begin != math.prod(entry["shape"]) * dtype.itemsize:
            raise CheckpointError(
                f"{file} is damaged: {name} has {end - begin} bytes, which is not the size of "
                f"{entry['dtype']} of shape {entry['shape']}."
            )
        if begin != previous:
            raise CheckpointError(f"{file} is damaged: {name} does not begin where it should.")
        previous = end
    if previous != size:
        raise CheckpointError(f"{file} is damaged: it has bytes that belong to no tensor.")
