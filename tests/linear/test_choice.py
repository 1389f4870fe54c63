"""How the kernels of a model's linear layers are chosen at a start."""

from __future__ import annotations

import logging

import pytest
import torch

from predictor.linear.choice import choose_kernels, log_kernels
from predictor.linear.kernels import (
    FLOAT32_BLOCKS,
    NATIVE,
    TRANSPOSED,
    LayerKind,
)
from predictor.linear.table import BUCKETS, LinearKernels, bucket_of
from predictor.linear.weight import LinearWeight

BODY = LayerKind(None, torch.bfloat16, "cpu", 16, 8)
HEAD = LayerKind(None, torch.bfloat16, "cpu", 24, 8)


class _Model:
    """A model of some layers and a head, which computes the last token alone."""

    def __init__(self, kernels: LinearKernels, layers: int = 12) -> None:
        self.kernels = kernels
        self.layers = layers
        self.passes: list[int] = []

    def run(self, rows: int) -> None:
        self.passes.append(rows)
        x = torch.ones(rows, 8, dtype=torch.bfloat16)
        for _ in range(self.layers):
            self.kernels.linear(x, _weight(BODY), None)
        self.kernels.linear(x[-1:], _weight(HEAD), None)


def _weight(kind: LayerKind) -> LinearWeight:
    return LinearWeight.plain(torch.ones(kind.out_features, 8, dtype=torch.bfloat16))


def test_every_number_of_rows_is_timed_once_in_a_model_of_many_layers() -> None:
    model = _Model(LinearKernels())
    assert choose_kernels(model.kernels, model.run, 1000)
    assert sorted(set(model.passes)) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert model.passes.count(8) == 1
    assert not any(kernels.trials for kernels in model.kernels)


def test_no_forward_pass_is_larger_than_planned() -> None:
    model = _Model(LinearKernels())
    choose_kernels(model.kernels, model.run, 31)
    assert max(model.passes) == 16


def test_a_slow_model_is_timed_for_one_row_alone() -> None:
    model = _Model(LinearKernels())
    times = iter(range(0, 1000, 60))
    assert choose_kernels(model.kernels, model.run, 1000, lambda: float(next(times)))
    assert set(model.passes) == {1}


def test_the_first_forward_passes_of_a_slow_model_are_timed_instead() -> None:
    model = _Model(LinearKernels(), layers=15)
    times = iter(range(0, 1000, 60))
    choose_kernels(model.kernels, model.run, 1000, lambda: float(next(times)))
    body = model.kernels.of(BODY)
    assert sorted(body.trials) == list(range(1, BUCKETS))
    model.run(20)
    assert bucket_of(20) not in body.trials
    assert bucket_of(40) in body.trials


def test_layers_without_a_choice_cost_no_forward_pass() -> None:
    kernels = LinearKernels()
    kernels.of(LayerKind(None, torch.float32, "cpu", 16, 8))
    model = _Model(kernels)
    assert not choose_kernels(kernels, model.run, 1000)
    assert model.passes == []


def test_layers_that_had_no_call_go_with_the_others() -> None:
    kernels = LinearKernels()
    body, head = kernels.of(BODY), kernels.of(HEAD)
    kernels.begin_trials(3)
    body.trials[3].seconds |= {NATIVE: [2.0], TRANSPOSED: [3.0], FLOAT32_BLOCKS: [1.0]}
    kernels.end_trials(3)
    assert body.chosen[3] == head.chosen[3] == FLOAT32_BLOCKS
    assert body.chosen[2] == head.chosen[2] == NATIVE


def test_rows_that_were_not_timed_go_with_the_next_larger() -> None:
    kernels = LinearKernels()
    model = _Model(kernels)
    choose_kernels(kernels, model.run, 31)
    body = kernels.of(BODY)
    assert set(body.chosen[5:]) == {body.chosen[bucket_of(16)]}


def test_a_failed_forward_pass_ends_the_trials() -> None:
    kernels = LinearKernels()
    kernels.of(BODY)

    def run(_rows: int) -> None:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        choose_kernels(kernels, run, 8)
    assert not kernels.of(BODY).trials


def test_choices_are_kept_for_layers_that_are_not_known_yet() -> None:
    kernels = LinearKernels()
    kernels.of(BODY).choose(3, TRANSPOSED)
    later = LinearKernels()
    later.restore(kernels.numbers().get)
    assert later.of(BODY).chosen[2:5] == [NATIVE, TRANSPOSED, NATIVE]
    assert not later.of(BODY).trials
    earlier = LinearKernels()
    earlier.of(BODY)
    earlier.restore(kernels.numbers().get)
    assert earlier.of(BODY).chosen == later.of(BODY).chosen


def test_what_was_not_chosen_before_is_timed_in_the_first_forward_passes() -> None:
    kernels = LinearKernels()
    kernels.of(BODY).begin_trial(4)
    later = LinearKernels()
    later.restore(kernels.numbers().get)
    assert list(later.of(BODY).trials) == [4]
    assert sorted(later.of(HEAD).trials) == list(range(BUCKETS))


def test_a_number_that_no_kernel_has_is_not_used() -> None:
    kernels = LinearKernels()
    kernels.restore(lambda _name: 99)
    assert kernels.of(BODY).chosen == [NATIVE] * BUCKETS


def test_the_log_tells_the_choice_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    kernels = LinearKernels()
    body = kernels.of(BODY)
    for bucket in range(1, 4):
        body.choose(bucket, TRANSPOSED)
    for bucket in range(4, BUCKETS):
        body.choose(bucket, FLOAT32_BLOCKS)
    with caplog.at_level(logging.INFO):
        log_kernels(kernels)
    assert [record.getMessage() for record in caplog.records] == [
        "Linear layers (bfloat16) are computed by: native for 1 row, transposed for 2 to 8 rows, "
        "float32 blocks for 9 rows and more"
    ]
