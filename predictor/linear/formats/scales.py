"""How rows of unpacked weights are multiplied by their scales, shared by the formats."""

from __future__ import annotations

import torch


def as_float32(scale: torch.Tensor) -> torch.Tensor:
    """Return a scale in float32; bytes are the exponents of powers of two, biased by 127 (E8M0)."""
    if scale.dtype == torch.uint8:
        scale = scale.view(torch.float8_e8m0fnu)
    return scale.to(torch.float32)


def multiply_by_outputs(
    integers: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return integers times a scale per output, rounded once.

    Args:
        integers: Rows of a matrix, of shape (rows, in).
        scale: Of shape (rows,), in float32.
        dtype: The dtype of the result.
    """
    return integers.to(torch.float32).mul_(scale[:, None]).to(dtype)


def multiply_by_blocks(
    rows: torch.Tensor, scale: torch.Tensor, begin: int, block: tuple[int, int]
) -> None:
    """Multiply rows of a matrix in place by one scale per block of it.

    The scales are widened to whole rows first, because multiplying contiguous rows is what a
    processor does fastest.

    Args:
        rows: Rows of the matrix, of shape (rows, in), in float32.
        scale: The scales of the whole matrix, of shape (row blocks, column blocks), in float32.
        begin: The first of the rows.
        block: The outputs and the inputs that share a scale.
    """
    count, columns = rows.shape
    height, width = block
    if height == 1 and columns % width == 0:
        multiply_by_groups(rows, scale[begin : begin + count])
        return
    first = begin // height
    touched = scale[first : (begin + count - 1) // height + 1]
    wide = touched[:, :, None].expand(-1, -1, width).reshape(len(touched), -1)[:, :columns]
    whole = count // height if begin % height == 0 else 0
    if whole:
        aligned = rows[: whole * height].view(whole, height, columns)
        aligned.mul_(wide[:whole, None, :])
    for index in range(whole, len(touched)):
        top = (first + index) * height - begin
        rows[max(0, top) : top + height].mul_(wide[index])


def multiply_by_groups(
    rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
) -> None:
    """Subtract the zero points of rows of a matrix and multiply them by their scales, in place.

    Args:
        rows: Rows of the matrix, of shape (rows, in), in float32.
        scale: The scales of these rows in float32, of shape (rows, groups); one row holds for all.
            A group has so many inputs that all have a scale.
        zero: The zero points, of the same shape, in float32.
    """
    count, columns = rows.shape
    groups = scale.shape[1]
    grouped = rows.view(count, groups, columns // groups)
    if zero is not None:
        grouped.sub_(zero[:, :, None])
    grouped.mul_(scale[:, :, None])
