"""Drafts where experts are read: on while they are measured to pay, and hardly ever otherwise."""

from __future__ import annotations

import pytest

from predictor.engine.generation.draft_trials import DraftTrials


class Passes:
    """Forward passes of a model whose drafts give twice the tokens, in so many times the time."""

    def __init__(self, slower: float) -> None:
        self.trials, self.slower, self.seconds = DraftTrials(), slower, 0.0

    def run(self, passes: int, rows: int = 1) -> float:
        """Return the share of passes that had drafts."""
        drafted = 0
        for _ in range(passes):
            has_drafts = self.trials.allows(rows)
            seconds = self.slower if has_drafts else 1.0
            tokens = rows * (2 if has_drafts else 1)
            self.trials.note(rows, tokens=tokens, seconds=seconds, has_drafts=has_drafts)
            drafted += has_drafts
            self.seconds += seconds
        return drafted / passes


@pytest.mark.parametrize("parts", [(5, 4), (1, 8)])
def test_a_step_of_several_forward_passes_is_measured_as_one(parts: tuple[int, int]) -> None:
    trials, drafted = DraftTrials(), []
    for _ in range(300):
        has_drafts = trials.allows(sum(parts))
        drafted.append(has_drafts)
        for index, rows in enumerate(parts):  # the second one has nothing to draft
            with_drafts = has_drafts and not index
            tokens, seconds = (2 * rows, 1.5) if with_drafts else (rows, 1.0)
            trials.note(rows, tokens=tokens, seconds=seconds, has_drafts=with_drafts)
    # 14 tokens in 2.5 seconds are more than 9 in 2; 10 in 2.5 are fewer than 9 in 2.
    assert sum(drafted[100:]) > 170 if parts == (5, 4) else sum(drafted[100:]) < 30


def test_a_step_of_which_a_part_failed_says_nothing() -> None:
    trials = DraftTrials()
    for _ in range(50):
        assert not trials.allows(9)
        trials.note(5, tokens=5, seconds=1.0, has_drafts=False)


@pytest.mark.parametrize(("slower", "least", "most"), [(1.2, 0.9, 1.0), (4.0, 0.0, 0.1)])
def test_drafts_go_on_only_where_they_are_faster(slower: float, least: float, most: float) -> None:
    passes = Passes(slower)
    passes.run(40)
    assert least <= passes.run(400) <= most


def test_drafts_that_never_pay_take_ever_less_time() -> None:
    passes = Passes(4.0)
    shares = [passes.run(1000) for _ in range(6)]
    assert shares[-1] < 0.005
    assert shares[-1] < shares[0] < 0.03


def test_drafts_that_pay_again_are_noticed_and_those_that_no_longer_do_too() -> None:
    passes = Passes(4.0)
    passes.run(500)
    passes.slower = 1.1
    passes.run(1500)
    assert passes.run(200) > 0.8
    passes.slower = 4.0
    passes.run(20)
    assert passes.run(400) < 0.1


def test_each_number_of_sequences_is_measured_by_itself() -> None:
    passes = Passes(4.0)
    passes.run(200, rows=1)
    passes.slower = 1.1
    passes.run(40, rows=8)
    assert passes.run(100, rows=8) > 0.8
    assert passes.run(20, rows=1) < 0.3
