"""What a start measures of the kernels of linear layers, and what it takes from an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from predictor.engine import warmup
from predictor.engine.warmup import choose_linear_kernels
from predictor.linear.kernels import LayerKind
from predictor.linear.table import LinearKernels
from predictor.linear.weight import LinearWeight
from predictor.weights.store.warmup_cache import WarmupCache

KIND = LayerKind(None, torch.bfloat16, "cpu", 16, 8)


class _Start:
    """A start of a model of twelve layers in bfloat16."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch, device: str = "cpu") -> None:
        self.passes: list[int] = []
        self.kernels = LinearKernels()
        self.kernels.of(KIND)
        monkeypatch.setattr(warmup, "KERNELS", self.kernels)
        choose_linear_kernels(self._run, 16, device, WarmupCache(file))

    def _run(self, rows: int) -> None:
        self.passes.append(rows)
        x = torch.ones(rows, 8, dtype=torch.bfloat16)
        weight = LinearWeight.plain(torch.ones(16, 8, dtype=torch.bfloat16))
        for _ in range(12):
            self.kernels.linear(x, weight, None)


def test_kernels_are_timed_at_the_first_start_and_kept_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _Start(tmp_path / "cache", monkeypatch)
    assert set(first.passes) == {1, 2, 4, 8, 16}
    second = _Start(tmp_path / "cache", monkeypatch)
    assert second.passes == []
    assert second.kernels.of(KIND).chosen == first.kernels.of(KIND).chosen
    assert not second.kernels.of(KIND).trials


def test_kernels_are_timed_again_on_another_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Start(tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"another": True})
    assert _Start(tmp_path / "cache", monkeypatch).passes


def test_a_gpu_has_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _Start(tmp_path / "cache", monkeypatch, device="cuda").passes == []
