"""bitsandbytes: NF4 and FP4 with doubly quantised scales, and the integers of LLM.int8().

The four-bit formats hold a matrix as one row of numbers, the first in the upper bits of a byte. The
numbers stand for the values of ``quant_map``. Blocks of neighbours share an ``absmax``, which may
itself be a byte that stands for a value of ``nested_quant_map``, of which blocks share a
``nested_absmax``; a ``nested_offset`` is added. It is in a JSON text, kept as a tensor of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.packed_bits import look_up, pair_table
from predictor.linear.formats.scales import multiply_by_outputs
from predictor.linear.formats.stored_tensors import (
    FLOATS,
    accept_usual,
    ceil_div,
    expect,
    refuse_others,
)

_ABSMAX = "weight.absmax"
_MAP = "weight.quant_map"
_NESTED_ABSMAX = "weight.nested_absmax"
_NESTED_MAP = "weight.nested_quant_map"

_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""The block sizes that bitsandbytes has."""

_USUAL_BLOCK = 64
_USUAL_NESTED_BLOCK = 256
_USUAL_STATE = 200
"""About how many bytes the JSON text has."""


@dataclass(frozen=True, slots=True)
class BitsAndBytes4:
    """Weights in NF4 or FP4.

    Sizes of blocks are seen from the shapes, the smallest that fits; another one that fits as well
    would give the same values.

    Attributes:
        kind: ``nf4`` or ``fp4``.
        in_features: The inputs of the layer, which the stored shapes do not tell. If it is 0, they
            are taken from the JSON text, which is not there on the meta device.
        nested: Scales are usually quantised too.
    """

    kind: str = "nf4"
    in_features: int = 0
    nested: bool = True

    @property
    def title(self) -> str:
        """The format as users see it."""
        return f"bitsandbytes {self.kind}"

    @property
    def ignored(self) -> frozenset[str]:
        """Nothing: all that is stored is needed."""
        return frozenset()

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        numbers = out_features * in_features
        blocks = ceil_div(numbers, _USUAL_BLOCK)
        scale = torch.uint8 if self.nested else torch.float32
        specs = {
            "weight": TensorSpec(torch.uint8, (ceil_div(numbers, 2), 1)),
            _ABSMAX: TensorSpec(scale, (blocks,)),
            _MAP: TensorSpec(torch.float32, (16,)),
            self._state: TensorSpec(torch.uint8, (_USUAL_STATE,)),
        }
        if self.nested:
            nested_blocks = ceil_div(blocks, _USUAL_NESTED_BLOCK)
            specs[_NESTED_ABSMAX] = TensorSpec(torch.float32, (nested_blocks,))
            specs[_NESTED_MAP] = TensorSpec(torch.float32, (256,))
        return specs

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        packed = ceil_div(out_features * in_features, 2)
        nested = _NESTED_ABSMAX in stored
        scale = torch.uint8 if nested else torch.float32
        served = {
            "weight": expect(stored, "weight", (torch.uint8,), [(packed, 1), (1, packed)]),
            _ABSMAX: _expect_blocks(stored, _ABSMAX, scale, out_features * in_features),
            _MAP: expect(stored, _MAP, FLOATS, [(16,)]),
            self._state: _expect_text(stored, self._state),
        }
        if nested:
            blocks = served[_ABSMAX].shape[0]
            served[_NESTED_ABSMAX] = _expect_blocks(stored, _NESTED_ABSMAX, torch.float32, blocks)
            served[_NESTED_MAP] = expect(stored, _NESTED_MAP, FLOATS, [(256,)])
        refuse_others(stored, served, self.ignored)
        return served

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix; see `WeightFormat`.

        On an accelerator this waits for the device if scales are nested: the text is read.
        """
        state = self._read_state(packed)
        columns = state.in_features
        codes = packed["weight"].reshape(-1)
        size = _block_size(2 * len(codes), len(packed[_ABSMAX]))
        first, last = begin * columns // size, ceil_div(end * columns, size)
        table = pair_table(packed[_MAP].to(torch.float32), high_first=True)
        numbers = look_up(table, codes[first * size // 2 : last * size // 2]).view(-1)
        _multiply(numbers, _scales(packed, first, last, state.nested_offset), size)
        offset = begin * columns - first * size
        rows = numbers[offset : offset + (end - begin) * columns]
        return rows.view(end - begin, columns).to(dtype)

    @property
    def _state(self) -> str:
        return f"weight.quant_state.bitsandbytes__{self.kind}"

    def _read_state(self, packed: Mapping[str, torch.Tensor]) -> _State:
        text = packed[self._state]
        is_complete = self.in_features and _NESTED_ABSMAX not in packed
        if is_complete or text.device.type == "meta":
            return _State(self.in_features, 0.0)
        try:
            values = json.loads(bytes(text.tolist()))
            in_features = self.in_features or int(values["shape"][1])
            return _State(in_features, float(values.get("nested_offset", 0.0)))
        except (ValueError, LookupError, TypeError, AttributeError):
            message = f"The tensor {self._state!r} does not say the shape and the offset."
            raise CheckpointError(message) from None


@dataclass(frozen=True, slots=True)
class BitsAndBytes8:
    """Weights of LLM.int8(): one byte each, and for each output the largest, which is 127."""

    @property
    def title(self) -> str:
        """The format as users see it."""
        return "bitsandbytes int8"

    @property
    def ignored(self) -> frozenset[str]:
        """The order of the bytes, of which bitsandbytes has had only one since version 0.45."""
        return frozenset({"weight_format"})

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        return {
            "weight": TensorSpec(torch.int8, (out_features, in_features)),
            "SCB": TensorSpec(torch.float32, (out_features,)),
        }

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        usual = self.tensors(out_features, in_features)
        return accept_usual(stored, usual, self.ignored, scales=["SCB"])

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix; see `WeightFormat`."""
        return multiply_by_outputs(*self.integers(packed, begin, end), dtype)

    @property
    def has_output_scales(self) -> bool:
        """Nothing else belongs to a matrix."""
        return True

    def integers(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows of the matrix and their scales; see `IntegerFormat`."""
        return packed["weight"][begin:end], packed["SCB"][begin:end].to(torch.float32) / 127


@dataclass(frozen=True, slots=True)
class _State:
    """What the JSON text tells and no other tensor."""

    in_features: int
    nested_offset: float


def _expect_blocks(
    stored: Mapping[str, TensorSpec], role: str, dtype: torch.dtype, count: int
) -> TensorSpec:
    shapes = [(ceil_div(count, size),) for size in _BLOCKS]
    return expect(stored, role, (dtype,), shapes)


def _expect_text(stored: Mapping[str, TensorSpec], role: str) -> TensorSpec:
    lengths = stored[role].shape[:1] if role in stored else ()
    return expect(stored, role, (torch.uint8,), [lengths or (_USUAL_STATE,)])


def _block_size(count: int, blocks: int) -> int:
    """Return the smallest size with which so many numbers have so many blocks."""
    return next(size for size in _BLOCKS if ceil_div(count, size) == blocks)


def _scales(
    packed: Mapping[str, torch.Tensor], first: int, last: int, nested_offset: float
) -> torch.Tensor:
    """Return the float32 scales of some blocks."""
    absmax = packed[_ABSMAX]
    scale = absmax[first:last]
    if _NESTED_ABSMAX not in packed:
        return scale.to(torch.float32)
    nested = packed[_NESTED_ABSMAX].to(torch.float32)
    size = _block_size(len(absmax), len(nested))
    group = torch.arange(first, last, device=scale.device) // size
    values = packed[_NESTED_MAP].to(torch.float32).index_select(0, scale.to(torch.int32))
    return values * nested.index_select(0, group) + nested_offset


def _multiply(numbers: torch.Tensor, scale: torch.Tensor, size: int) -> None:
    """Multiply each block by its scale; the last one may be shorter."""
    whole = len(numbers) // size
    numbers[: whole * size].view(whole, size).mul_(scale[:whole, None])
    numbers[whole * size :].mul_(scale[whole:])
