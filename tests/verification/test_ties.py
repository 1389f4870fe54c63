"""Tied weights are what transformers makes of the files: stored once under any name, or twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.linear.formats.format import TensorSpec
from predictor.verification import ties
from tests.conftest import Checkpoints
from tests.encoding.checkpoints import make_encoder_decoder
from tests.engine.test_encoder_decoder import alone, ask
from tests.serving import bring_up, is_reply
from tests.verification.test_weights import State, edited, planned
from tests.weights.test_loader import NEW_TOKENS, reference

IDS = list(range(5, 16))
TEXTS = ("a long text to begin with", "hello")

PAIRS = {
    "llama-tied": ("model.embed_tokens.weight", "lm_head.weight"),
    "bloom": ("transformer.word_embeddings.weight", "lm_head.weight"),
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "opt": ("model.decoder.embed_tokens.weight", "lm_head.weight"),
}


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("architecture", PAIRS)
def test_a_pair_may_be_stored_under_either_name(
    checkpoints: Checkpoints, tmp_path: Path, architecture: str, where: str
) -> None:
    embeddings, head = PAIRS[architecture]

    def rename(state: State) -> None:
        state[head] = state.pop(embeddings)

    folder = edited(checkpoints(architecture), tmp_path / "model", rename)

    up = bring_up(folder, device_map=where, offload_folder=str(tmp_path / "offload"))

    assert up.tokens(IDS, max_new_tokens=NEW_TOKENS) == reference(folder, IDS)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("architecture", PAIRS)
def test_a_head_with_values_of_its_own_is_planned_and_used(
    checkpoints: Checkpoints, tmp_path: Path, architecture: str, where: str
) -> None:
    embeddings, head = PAIRS[architecture]
    source, size = checkpoints(architecture), []

    def add_head(state: State) -> None:
        generator = torch.Generator().manual_seed(1)
        state[head] = torch.randn(state[embeddings].shape, generator=generator)
        size.append(state[head].nbytes)

    folder = edited(source, tmp_path / "model", add_head)

    up = bring_up(folder, device_map=where, offload_folder=str(tmp_path / "offload"))

    assert up.prepared.placement.weights == planned(source).placement.weights + size[0]
    assert up.tokens(IDS, max_new_tokens=NEW_TOKENS) == reference(folder, IDS)


def test_a_head_that_equals_the_embeddings_is_planned_once(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    embeddings, head = PAIRS["llama-tied"]
    source = checkpoints("llama-tied")
    folder = edited(
        source, tmp_path / "model", lambda state: state.update({head: state[embeddings].clone()})
    )

    assert planned(folder).placement.weights == planned(source).placement.weights


def test_what_differs_in_the_files_alone_is_planned_once(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Served in bfloat16, both are equal: of a number that it holds, 1e-4 more is lost."""
    embeddings, head = PAIRS["llama-tied"]
    source = checkpoints("llama-tied")

    def add_head(state: State) -> None:
        state[embeddings] = state[embeddings].bfloat16().float()
        state[head] = state[embeddings] * 1.0001

    folder = edited(source, tmp_path / "model", add_head)

    def weights(dtype: str) -> int:
        return planned(folder, dtype=dtype).placement.weights

    assert weights("bfloat16") == planned(source, dtype="bfloat16").placement.weights
    assert weights("float32") > planned(source, dtype="float32").placement.weights


def own_head(state: State) -> None:
    state["lm_head.weight"] = state["shared.weight"].flip(0)


def head_alone(state: State) -> None:
    state["lm_head.weight"] = state.pop("shared.weight")


def encoder_alone(state: State) -> None:
    state["encoder.embed_tokens.weight"] = state.pop("shared.weight")


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("change", [own_head, head_alone, encoder_alone])
def test_the_same_of_weights_that_four_parts_share(
    tmp_path: Path, change: object, where: str
) -> None:
    folder = edited(make_encoder_decoder(tmp_path / "t5", "t5"), tmp_path / "model", change)

    up = bring_up(folder, device_map=where, offload_folder=str(tmp_path / "offload"))

    expected = alone(folder, *TEXTS, max_new_tokens=20)
    for reply, whole in zip(ask(up, *TEXTS), expected, strict=True):
        assert is_reply(reply.text, whole)


class InMemory:
    """Stored tensors in memory."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.specs = {name: TensorSpec("F32", tuple(each.shape)) for name, each in tensors.items()}
        self._tensors = tensors

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


@pytest.mark.parametrize(
    ("changed", "by_samples", "whole"), [(None, True, True), (-1, False, False), (0, False, False)]
)
def test_a_plan_compares_samples_with_the_first_and_the_last_elements(
    changed: int | None, by_samples: bool, whole: bool
) -> None:
    one = torch.zeros(2**23 + 5)
    other = one.clone()
    if changed is not None:
        other[changed] = 1
    stored: Any = InMemory(one=one, other=other)
    for samples, expected in ((True, by_samples), (False, whole)):
        assert ties._is_equal(stored, "one", "other", torch.float32, samples) == expected


def test_only_a_server_sees_a_difference_between_the_samples() -> None:
    one = torch.zeros(2**23)
    other = one.clone()
    other[2**16 + 9] = 1
    stored: Any = InMemory(one=one, other=other)
    assert ties._is_equal(stored, "one", "other", torch.float32, True)
    assert not ties._is_equal(stored, "one", "other", torch.float32, False)
