"""The dtypes of weights: names in torch, in settings and in safetensors files, and sizes in bytes.

Without torch, so that settings, planning and the migration can use it. Which dtype a model is
served in is decided in `constraints`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ServingDType = Literal["float32", "float16", "bfloat16", "float64"]
"""The dtypes that a model can be served in."""

_UNKNOWN_BYTES = 2


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype of stored or served weights.

    Attributes:
        name: torch's name, without ``torch.``.
        itemsize: Bytes of one element.
        code: The name in a safetensors header
            (https://github.com/huggingface/safetensors#format).
        aliases: torch's other names, which the settings take too.
        short_names: Names that only TorchServe's handlers take.
    """

    name: str
    itemsize: int
    code: str
    aliases: tuple[str, ...] = ()
    short_names: tuple[str, ...] = ()

    @property
    def is_floating(self) -> bool:
        """Whether models can be served in it."""
        return self.name in get_args(ServingDType)


_TABLE = (
    DType("float64", 8, "F64", short_names=("fp64",)),
    DType("float32", 4, "F32", aliases=("float",), short_names=("fp32",)),
    DType("float16", 2, "F16", aliases=("half",), short_names=("fp16",)),
    DType("bfloat16", 2, "BF16", short_names=("bf16",)),
    DType("int64", 8, "I64"),
    DType("int32", 4, "I32"),
    DType("int16", 2, "I16"),
    DType("int8", 1, "I8"),
    DType("uint8", 1, "U8"),
    DType("uint16", 2, "U16"),
    DType("uint32", 4, "U32"),
    DType("uint64", 8, "U64"),
    DType("float8_e4m3fn", 1, "F8_E4M3"),
    DType("float8_e5m2", 1, "F8_E5M2"),
    DType("float8_e8m0fnu", 1, "F8_E8M0"),
    DType("bool", 1, "BOOL"),
)

BY_CODE = {dtype.code: dtype for dtype in _TABLE}
"""Dtypes by their name in a safetensors header."""

_BY_NAME = {dtype.name: dtype for dtype in _TABLE}

SETTING_ALIASES = {alias: dtype.name for dtype in _TABLE for alias in dtype.aliases}
"""Names of dtypes by the other names that the settings take."""

HANDLER_NAMES = {
    name: dtype.name
    for dtype in _TABLE
    if dtype.is_floating
    for name in (dtype.name, *dtype.aliases, *dtype.short_names)
}
"""Names of serving dtypes by every name that TorchServe's handlers take."""


def item_bytes(name: str) -> int:
    """Return the bytes of one element of a dtype, by torch's name; 2 for an unknown dtype."""
    dtype = _BY_NAME.get(name)
    return _UNKNOWN_BYTES if dtype is None else dtype.itemsize


def name_of(dtype: object) -> str:
    """Return torch's name of a dtype, without ``torch.``, from a name or a `torch.dtype`."""
    return str(dtype).removeprefix("torch.")
