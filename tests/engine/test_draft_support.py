"""Drafts of a served mixture, by its placement: measured in place where its experts are read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from predictor.engine.generation import warmup
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.timing import PassCost
from tests.conftest import Checkpoints
from tests.engine.test_verification import REPEATING, Guesses
from tests.serving import Up
from tests.weights.experts.serving import RESIDENT, Way, served

IN_SLOTS = Way(2, "checkpoint")
STEPS = 4
"""Steps of a trial, with drafts or without."""

TOKENS, MOST = 80, 7


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of a forward pass cost little, as they do in a large model."""
    monkeypatch.setattr(warmup, "measure_pass", lambda *_, **__: PassCost(0.01, 64))


def reply(up: Up, *, plain: float = 0.0, drafted: float = 0.0) -> tuple[list[int], list[int]]:
    """Return the tokens of a reply, and the drafts in each forward pass after its prompt.

    Args:
        up: The model.
        plain: Seconds that a forward pass without drafts takes longer.
        drafted: Those that one with drafts does.
    """
    runner, drafts = up.task.engine.runner, []
    run = runner.run

    def noted(rows: Sequence[SequenceChunk]) -> torch.Tensor:
        if rows[0].start >= len(REPEATING):
            drafts.append(rows[0].drafts)
        time.sleep(drafted if rows[0].drafts else plain)
        logits: torch.Tensor = run(rows)
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run", noted)
        tokens = up.tokens(REPEATING, max_new_tokens=TOKENS, ignore_eos=True)
    return tokens, drafts


@pytest.fixture(scope="module")
def mixture(mixtures: Checkpoints) -> Path:
    return mixtures("mixtral")


@pytest.fixture(scope="module")
def expected(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """A reply without drafts."""
    folder = tmp_path_factory.mktemp("offload")
    with served(mixture, IN_SLOTS, folder, prompt_lookup_num_tokens=0) as up:
        tokens, drafts = reply(up)
    assert not any(drafts)
    return tokens


def test_drafts_of_a_mixture_in_memory_are_not_measured_in_place(
    mixture: Path, expected: list[int], tmp_path: Path
) -> None:
    with served(mixture, RESIDENT, tmp_path) as up:
        assert not up.task.engine.limits.tries_drafts
        tokens, drafts = reply(up)
    assert tokens == expected
    assert sum(drafts) > 0


def test_lookup_changes_no_reply_of_a_mixture_in_slots(
    mixture: Path, expected: list[int], tmp_path: Path
) -> None:
    with served(mixture, IN_SLOTS, tmp_path) as up:
        assert up.task.engine.limits.tries_drafts
        tokens, drafts = reply(up)
    assert tokens == expected
    assert sum(drafts) > 0
    assert not any(drafts[:STEPS])


@pytest.mark.parametrize("pays", [True, False])
def test_drafts_of_a_mixture_in_slots_go_on_only_where_they_are_faster(
    mixture: Path, expected: list[int], tmp_path: Path, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses = Guesses(monkeypatch, wrong=0.0 if pays else 1.0)
    guesses.know(REPEATING, expected)
    with served(mixture, IN_SLOTS, tmp_path, prompt_lookup_num_tokens=MOST) as up:
        tokens, drafts = reply(up, plain=0.02, drafted=0.02 if pays else 0.1)
    assert tokens == expected
    plain, tried, later = drafts[:STEPS], drafts[STEPS : 2 * STEPS], drafts[2 * STEPS :]
    assert not any(plain)
    assert all(tried)
    # One step without drafts may be needed to compare; another trial comes after 32.
    assert later.count(0) <= 1 if pays else len(later) - later.count(0) <= 2 * STEPS
