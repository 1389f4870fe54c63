"""Which module reads each weight, and so which modules can be streamed by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from predictor.profiling.streamed_modules import cut
from predictor.profiling.weight_reads import WeightReads


class Layer(nn.Module):
    """A layer whose small convolution is read by the layer itself, as in a decoding step."""

    def __init__(self, read: Callable[[nn.Linear], Any]) -> None:
        super().__init__()
        self.read = read
        self.inner = nn.ModuleDict({"up": nn.Linear(4, 16), "down": nn.Linear(16, 4)})
        self.small = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.read(self.small)
        return self.small(self.inner["down"](self.inner["up"](x)))


class Model(nn.Module):
    """Two layers, of which one runs, and a head that is tied to the embeddings."""

    def __init__(self, read: Callable[[nn.Linear], Any] = lambda _: None) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList([Layer(read), Layer(read)])
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.layers[0](self.embed(ids)))
        return result


def watched(model: Any) -> WeightReads:
    with torch.device("meta"), WeightReads(model.to("meta"), BLOCKS) as watch, torch.no_grad():
        model(torch.zeros(1, 2, dtype=torch.long))
    return watch


BLOCKS = ("layers.0", "layers.1")


def sizes(model: Any, units: tuple[str, ...], watch: WeightReads) -> dict[str, list[str]]:
    parts = cut(model, units, watch.readers, frozenset())
    return {unit: [module.name for module in modules] for unit, modules in parts.items()}


def test_a_weight_is_read_by_its_owner_under_the_name_that_runs() -> None:
    readers = watched(Model()).readers
    assert readers.of("embed.weight") == "embed"
    assert readers.of("head.weight") == "head"
    assert readers.of("layers.1.inner.up.weight") == "layers.1.inner.up"
    assert readers.is_called("layers.1.inner.up")
    assert not readers.is_called("layers.1.inner")


def test_what_is_read_after_a_pass_that_failed_is_read_by_no_module() -> None:
    model: Any = Model(lambda _: torch.zeros(1, device="meta").item()).to("meta")
    with WeightReads(model, BLOCKS) as watch:
        with pytest.raises(RuntimeError, match="meta"):
            model(torch.zeros(1, 2, dtype=torch.long, device="meta"))
        assert [weight.untyped_storage() for weight in model.parameters()]
    assert watch.readers.of("layers.0.inner.up.weight") == "layers.0.inner.up"


@pytest.mark.parametrize(
    "read",
    [
        lambda small: small.weight[0],
        lambda small: functional.linear(torch.zeros(4, 4, device="meta"), small.weight),
        lambda small: torch.cat([small.weight, small.weight]),
        lambda small: small.weight.device,
        lambda small: small.weight.data,
    ],
    ids=["row", "argument", "list", "device", "data"],
)
def test_a_weight_that_another_module_reads_is_streamed_with_that_module(read: Any) -> None:
    watch = watched(model := Model(read))
    assert watch.readers.of("layers.1.small.weight") == "layers.1"  # which did not run
    assert sizes(model, BLOCKS, watch) == {name: [name] for name in BLOCKS}


@pytest.mark.parametrize(
    "ask", [lambda x: x.weight.dtype, lambda x: x.weight.shape, lambda x: x.weight.size(0)]
)
def test_what_a_weight_on_meta_knows_too_is_no_read(ask: Any) -> None:
    assert watched(Model(ask)).readers.of("layers.0.small.weight") == "layers.0.small"


def test_neighbours_are_joined_up_to_the_size_of_the_largest_module() -> None:
    watch = watched(model := Model())
    # up has 4 x 16 + 16 = 80 numbers, down 68, small 20. A dictionary of modules is never called.
    assert sizes(model, BLOCKS, watch)["layers.0"] == [
        "layers.0.inner.up",
        "layers.0.inner.down",
        "layers.0.small",
    ]


def test_a_pass_that_failed_within_a_module_leaves_the_next_one_right() -> None:
    def fail(_: Any) -> Any:
        raise ValueError("within a module")

    model: Any = Model(fail).to("meta")
    with WeightReads(model, BLOCKS) as watch, torch.no_grad():
        ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
        with pytest.raises(ValueError, match="within a module"):
            model(ids)
        model.layers[0].read = lambda _: None
        model(ids)
    assert watch.readers.of("embed.weight") == "embed"
    assert watch.readers.of("layers.0.small.weight") == "layers.0.small"
