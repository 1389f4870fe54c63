"""A linear layer whose weights stay packed."""

from __future__ import annotations

import torch
from torch import nn

from predictor.linear.layers import PackedMatrix
from predictor.linear.table import KERNELS


class PackedLinear(nn.Module):
    """A linear layer whose parameters are the tensors of a format, under their published names.

    Attributes:
        matrix: The weights.
        in_features: Its inputs.
        out_features: Its outputs.
        bias: Its bias; None without one.
    """

    bias: nn.Parameter | None

    def __init__(self, matrix: PackedMatrix, bias: nn.Parameter | None) -> None:
        """Hold the parameters on the meta device.

        Args:
            matrix: The weights.
            bias: The bias, of shape (out,).
        """
        super().__init__()
        self.matrix = matrix
        self.in_features, self.out_features = matrix.in_features, matrix.out_features
        for name, parameter in matrix.parameters().items():
            self.register_parameter(name, parameter)
        self.register_parameter("bias", bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs, of shape (..., out).

        Args:
            inputs: Of shape (..., in).
        """
        return KERNELS.linear(inputs, self.matrix.weight_in(self._parameters), self.bias)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"{self.in_features}, {self.out_features}, {self.matrix.format.title}"
