"""The logits of one forward pass are the same, bit for bit, wherever its experts were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from predictor.weights.experts.ways import Way as Ahead
from predictor.weights.experts.ways import WayChoice
from tests.conftest import Checkpoints
from tests.serving import Up
from tests.weights.experts.serving import OFFLOADED, RESIDENT, Way, served

PASSES = [
    [[9, 200, 31, 77, 5, 140]],
    [[12]],
    [[4 + (7 * index + 50 * row) % 250 for index in range(40)] for row in range(3)],
    [[88, 19, 250, 61], [7, 7, 7, 7]],
    [[9, 200, 31, 77, 5, 140]],
]
"""Few tokens and many, so that slots are hit, missed and filled in waves."""

NAMES = ("mixtral", "qwen3_moe, many", "deepseek_v3", "gpt_oss", "aria_text", "nemotron_h")


@torch.inference_mode()
def logits_of(up: Up) -> list[torch.Tensor]:
    return [up.model(torch.tensor(rows), use_cache=False).logits for rows in PASSES]


def read_ahead(monkeypatch: pytest.MonkeyPatch, ahead: Ahead) -> None:
    """Have all passes read ahead in this way, instead of the fastest."""
    monkeypatch.setattr(WayChoice, "begin_pass", lambda self, _: setattr(self, "way", ahead))


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        *((name, OFFLOADED[turn % 4 :: 4]) for turn, name in enumerate(NAMES)),
        *(pytest.param(name, OFFLOADED, marks=pytest.mark.full_grid) for name in NAMES),
    ],
    ids=lambda value: value if isinstance(value, str) else "-or-".join(map(str, value)),
)
def test_logits_are_bit_identical_in_all_ways(
    mixtures: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    ways: list[Way],
) -> None:
    folder = mixtures(name)
    with served(folder, RESIDENT, tmp_path) as up:
        wanted = logits_of(up)
    assert torch.equal(wanted[0], wanted[-1])
    for way in ways:
        with served(folder, way, tmp_path) as up:
            for ahead in Ahead:
                read_ahead(monkeypatch, ahead)
                for logits, resident in zip(logits_of(up), wanted, strict=True):
                    assert torch.equal(logits, resident), f"{way}, ahead: {ahead}"


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_logits_in_company_are_those_alone_but_for_rounding(
    mixtures: Checkpoints, tmp_path: Path, name: str
) -> None:
    rows = PASSES[2]
    with served(mixtures(name), Way(2, "checkpoint"), tmp_path) as up, torch.inference_mode():
        together = up.model(torch.tensor(rows), use_cache=False).logits
        for row, logits in zip(rows, together, strict=True):
            alone = up.model(torch.tensor([row]), use_cache=False).logits[0]
            assert torch.allclose(logits, alone, rtol=0, atol=1e-5)
            assert torch.equal(logits.argmax(dim=-1), alone.argmax(dim=-1))
