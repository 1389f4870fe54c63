"""Matrices as each format stores them: packed by its own library, or else by its definition."""

from __future__ import annotations

import torch
from bitsandbytes.functional import (
    dequantize_4bit,
    dequantize_blockwise,
    int8_vectorwise_quant,
    quantize_4bit,
)
from compressed_tensors.compressors import (
    BaseCompressor,
    IntQuantizationCompressor,
    NVFP4PackedCompressor,
    PackedQuantizationCompressor,
)
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams

Packed = tuple[dict[str, torch.Tensor], torch.Tensor]
"""The tensors of a matrix by their roles, and the float32 values that they mean."""

E4M3 = torch.float8_e4m3fn
LARGEST_E4M3 = 448.0

AWQ_ORDER = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
"""AutoAWQ's: the output whose weight is in the n-th four bits of a word."""

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""The values of FP4 of the Open Compute Project's Microscaling specification, without signs."""


def words_of(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of numbers packed into words of 32 bits, the first in the lowest bits."""
    together = 32 // bits
    grouped = numbers.to(torch.int64).view(len(numbers), -1, together)
    shifts = torch.arange(together) * bits
    return (grouped << shifts).sum(2).to(torch.uint32).view(torch.int32)


def awq_words(numbers: torch.Tensor) -> torch.Tensor:
    """Rows of numbers packed into words of 32 bits in AutoAWQ's order."""
    ordered = numbers.view(len(numbers), -1, 8)[:, :, AWQ_ORDER]
    shifts = torch.arange(8) * 4
    return (ordered << shifts).sum(2).to(torch.uint32).view(torch.int32)


def observed(weight: torch.Tensor, group: int, *, whole: bool) -> torch.Tensor:
    """The weights by what shares a scale, of shape (outputs or 1, groups, weights)."""
    if whole:
        return weight.reshape(1, 1, -1)
    return weight.view(len(weight), -1, group or weight.shape[1])


def compressed(
    compressor: type[BaseCompressor],
    weight: torch.Tensor,
    args: QuantizationArgs,
    group: int,
    scale_dtype: torch.dtype = torch.float32,
) -> Packed:
    """What compressed-tensors stores of a matrix, and the matrix that it makes of it again."""
    sharing = observed(weight, group, whole=args.strategy == "tensor")
    scale, zero = calculate_qparams(sharing.amin(2), sharing.amax(2), args)
    state = {"weight": weight, "weight_scale": scale.to(scale_dtype).float()}
    if args.strategy == "tensor":
        scale, zero = scale.reshape(1), zero.reshape(1)
        state["weight_scale"] = state["weight_scale"].reshape(1)
    if not args.symmetric:
        state["weight_zero_point"] = zero
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    packed = compressor.compress(state, scheme)
    matrix = compressor.decompress(dict(packed), scheme)["weight"]
    packed["weight_scale"] = packed["weight_scale"].to(scale_dtype)
    return dict(packed), matrix


def arguments(bits: int, strategy: str, group: int, *, symmetric: bool) -> QuantizationArgs:
    """What compressed-tensors is told of integers."""
    size = group if strategy == "group" else None
    return QuantizationArgs(num_bits=bits, strategy=strategy, group_size=size, symmetric=symmetric)


def packed_integers(
    weight: torch.Tensor, bits: int = 4, group: int = 32, *, symmetric: bool = True
) -> Packed:
    """compressed-tensors' ``pack-quantized``, with the shape that it stores too."""
    strategy = "group" if group else "channel"
    args = arguments(bits, strategy, group, symmetric=symmetric)
    packed, values = compressed(PackedQuantizationCompressor, weight, args, group, torch.bfloat16)
    return packed | {"weight_shape": torch.tensor(weight.shape)}, values


def integers(weight: torch.Tensor) -> Packed:
    """compressed-tensors' ``int-quantized``, per channel."""
    args = arguments(8, "channel", 0, symmetric=True)
    return compressed(IntQuantizationCompressor, weight, args, 0)


def ordered_integers(weight: torch.Tensor, group: int = 32) -> Packed:
    """``pack-quantized`` with groups in the order of activations, as llm-compressor stores it."""
    group_of_input = torch.randperm(weight.shape[1]) // group
    scale = torch.stack(
        [
            weight[:, group_of_input == index].abs().amax(1)
            for index in range(_groups(weight, group))
        ]
    ).T.div(7)
    each = scale[:, group_of_input]
    steps = (weight / each).round().clamp(-8, 7)
    packed = {
        "weight_packed": words_of(steps + 8, 4),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
        "weight_g_idx": group_of_input.to(torch.int32),
    }
    return packed, steps * each


def gptq(
    weight: torch.Tensor,
    bits: int = 4,
    group: int = 32,
    *,
    act_order: bool = False,
    symmetric: bool = True,
) -> Packed:
    """GPTQ's layout of version 1, whose zero points are stored less one."""
    columns = weight.shape[1]
    group_of_input = torch.arange(columns) // group
    if act_order:
        group_of_input = group_of_input[torch.randperm(columns)]
    members = [weight[:, group_of_input == index] for index in range(_groups(weight, group))]
    top = 2**bits
    if symmetric:
        scale = torch.stack([part.abs().amax(1) for part in members]) * 2 / (top - 1)
        zero = torch.full_like(scale, top // 2)
    else:
        low = torch.stack([part.amin(1) for part in members])
        high = torch.stack([part.amax(1) for part in members])
        scale = (high - low) / (top - 1)
        zero = (-low / scale).round().clamp(0, top - 1)
    scale = scale.half()
    each, zero_of = scale.T.float()[:, group_of_input], zero.T[:, group_of_input]
    steps = (weight / each + zero_of).round().clamp(0, top - 1)
    packed = {
        "qweight": words_of(steps, bits).T.contiguous(),
        "qzeros": words_of((zero - 1).remainder(top), bits),
        "scales": scale,
        "g_idx": group_of_input.to(torch.int32),
    }
    return packed, (steps - zero_of) * each


def awq(weight: torch.Tensor, group: int = 32) -> Packed:
    """AutoAWQ's layout of version ``gemm``."""
    grouped = observed(weight, group, whole=False)
    low, high = grouped.amin(2), grouped.amax(2)
    scale = ((high - low) / 15).half()
    zero = (-low / scale.float()).round().clamp(0, 15)
    each, zero_of = (tensor.float().repeat_interleave(group, 1) for tensor in (scale, zero))
    steps = (weight / each + zero_of).round().clamp(0, 15)
    packed = {
        "qweight": awq_words(steps.T.to(torch.int64).contiguous()),
        "qzeros": awq_words(zero.T.to(torch.int64).contiguous()),
        "scales": scale.T.contiguous(),
    }
    return packed, (steps - zero_of) * each


def bitsandbytes4(
    weight: torch.Tensor, kind: str, block: int = 64, *, nested: bool = True
) -> Packed:
    """What bitsandbytes stores of a matrix, and the matrix that it makes of it again.

    Its kernel for processors gives another matrix than all others if blocks cross the ends of rows
    (0.50.2), so the matrix is computed in steps here.
    """
    packed, state = quantize_4bit(
        weight.contiguous(), blocksize=block, compress_statistics=nested, quant_type=kind
    )
    tensors = {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    absmax = state.absmax
    if nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[: weight.numel()]
    values = state.code[codes.int()] * absmax.repeat_interleave(block)[: weight.numel()]
    matrix = values.view(weight.shape)
    if weight.shape[1] % block == 0:
        assert torch.equal(matrix, dequantize_4bit(packed, state))
    return {"weight": packed, **tensors}, matrix


def bitsandbytes8(weight: torch.Tensor) -> Packed:
    """What bitsandbytes stores of a matrix for LLM.int8()."""
    eight, largest, _ = int8_vectorwise_quant(weight.half())
    packed = {"weight": eight, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return packed, eight.float() * (largest / 127)[:, None]


def fp8(weight: torch.Tensor, block: tuple[int, int], role: str = "weight_scale") -> Packed:
    """FP8 with a scale for each block, whose sides are 0 for all outputs or inputs."""
    rows, columns = weight.shape
    height, width = block[0] or rows, block[1] or columns
    scale = torch.zeros(-(-rows // height), -(-columns // width))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = weight[i * height : (i + 1) * height, j * width : (j + 1) * width]
            scale[i, j] = part.abs().max() / LARGEST_E4M3
    each = scale.repeat_interleave(height, 0).repeat_interleave(width, 1)[:rows, :columns]
    eight = (weight / each).to(E4M3)
    return {"weight": eight, role: scale}, eight.float() * each


def mxfp8(weight: torch.Tensor) -> Packed:
    """FP8 with exponents for 32 inputs each, as transformers stores them."""
    exponent = _exponents(weight, LARGEST_E4M3)
    each = torch.exp2(exponent).repeat_interleave(32, 1)
    eight = (weight / each).to(E4M3)
    scale = (exponent + 127).to(torch.uint8)
    return {"weight": eight, "weight_scale_inv": scale}, eight.float() * each


def mxfp4(weight: torch.Tensor, packed: str = "blocks", scale: str = "scales") -> Packed:
    """FP4 with exponents for 32 inputs each, as gpt-oss or compressed-tensors store them."""
    exponent = _exponents(weight, 6)
    each = torch.exp2(exponent).repeat_interleave(32, 1)
    codes, values = _to_fp4(weight / each)
    if packed == "blocks":
        codes = codes.view(len(weight), -1, 16)
    return {packed: codes, scale: (exponent + 127).to(torch.uint8)}, values * each


def nvfp4(weight: torch.Tensor) -> Packed:
    """What compressed-tensors stores of a matrix, and the matrix that it makes of it again."""
    scheme = preset_name_to_scheme("NVFP4A16", ["Linear"])
    peaks = weight.view(len(weight), -1, 16).abs().amax(2)
    global_scale = (LARGEST_E4M3 * 6 / peaks.max()).reshape(1)
    scale = (global_scale * peaks / 6).to(E4M3).float()
    state = {"weight": weight, "weight_scale": scale, "weight_global_scale": global_scale}
    packed = dict(NVFP4PackedCompressor.compress(state, scheme))
    values = dequantize(
        unpack_fp4_from_uint8(packed["weight_packed"], *weight.shape, torch.float32),
        packed["weight_scale"].float(),
        args=scheme.weights,
        global_scale=packed["weight_global_scale"],
        dtype=torch.float32,
    )
    return packed, values


def nvfp4_of_modelopt(weight: torch.Tensor) -> Packed:
    """NVFP4 with the names of ModelOpt, whose second scale multiplies."""
    peaks = weight.view(len(weight), -1, 16).abs().amax(2)
    second = peaks.max() / 6 / LARGEST_E4M3
    scale = (peaks / 6 / second).to(E4M3)
    each = (scale.float() * second).repeat_interleave(16, 1)
    codes, values = _to_fp4(weight / each)
    packed = {
        "weight": codes,
        "weight_scale": scale,
        "weight_scale_2": second,
        "input_scale": torch.tensor(1.0),
    }
    return packed, values * each


def _groups(weight: torch.Tensor, group: int) -> int:
    return weight.shape[1] // group


def _exponents(weight: torch.Tensor, largest: float) -> torch.Tensor:
    """The powers of two that are just large enough for each 32 inputs."""
    return (weight.view(len(weight), -1, 32).abs().amax(2) / largest).log2().ceil()


def _to_fp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes of weights, the first in the lower bits, and their values."""
    nearest = (weight.abs()[..., None] - E2M1).abs().argmin(-1)
    numbers = nearest + 8 * (weight < 0)
    codes = (numbers[:, 0::2] | numbers[:, 1::2] << 4).to(torch.uint8)
    return codes, E2M1[nearest] * weight.sign()
