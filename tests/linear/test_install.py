"""Linear layers of a model that ask the table of kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from predictor.linear.install import TimedLinear, install
from predictor.linear.kernels import Kernel
from predictor.linear.table import BUCKETS
from predictor.live_bytes import LiveBytes


class _Own(nn.Linear):
    """A layer with a forward pass of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input) + 1


def _model(dtype: torch.dtype, device: str = "cpu") -> nn.Sequential:
    with torch.device(device):
        layers = nn.Linear(40, 24), nn.ReLU(), _Own(24, 24), nn.Linear(24, 8, bias=False)
        return nn.Sequential(*layers).to(dtype).requires_grad_(False)


def test_layers_in_half_precision_ask_the_table() -> None:
    model = _model(torch.bfloat16)
    original = copy.deepcopy(model)
    install(model)
    assert [type(module) for module in model] == [TimedLinear, nn.ReLU, _Own, TimedLinear]
    assert list(model.state_dict()) == list(original.state_dict())
    x = torch.randn(3, 5, 40, dtype=torch.bfloat16)
    torch.testing.assert_close(model(x), original(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_do_not_follow_each_other_share_one_product(dtype: torch.dtype) -> None:
    model = _model(dtype)
    install(model)
    last = torch.randn(3, 5, 40, dtype=dtype)[:, -1:]
    with torch.profiler.profile() as profile:
        rows = model(last)
    assert "aten::bmm" not in {event.name for event in profile.events()}
    torch.testing.assert_close(rows, model(last.contiguous()))


def test_the_chosen_kernel_computes_with_the_parameters_of_the_moment() -> None:
    layer = nn.Linear(4, 3, bias=False, device="meta", dtype=torch.float16)
    model = nn.Sequential(layer)
    install(model)
    assert isinstance(layer, TimedLinear)
    twice = Kernel("twice", lambda x, w, _: 2 * functional.linear(x, w.tensors["weight"]))
    before = list(layer.kernels.chosen)
    try:
        for bucket in range(BUCKETS):
            layer.kernels.choose(bucket, twice)
        layer._parameters["weight"] = nn.Parameter(torch.ones(3, 4, dtype=torch.float16))
        assert model(torch.ones(2, 4, dtype=torch.float16)).tolist() == [[8.0] * 3] * 2
    finally:
        for bucket, kernel in enumerate(before):
            layer.kernels.choose(bucket, kernel)


def test_a_model_on_meta_allocates_what_the_hungriest_kernel_does() -> None:
    model = _model(torch.bfloat16, "meta")
    x = torch.empty(64, 40, dtype=torch.bfloat16, device="meta")
    weights = {weight.untyped_storage() for weight in model.parameters()}
    peaks = []
    for _ in range(2):
        with LiveBytes(excluded=weights) as live:
            model(x)
        peaks.append(live.peak)
        install(model)
    native, most = peaks
    assert most >= native + 64 * 40 * 4
