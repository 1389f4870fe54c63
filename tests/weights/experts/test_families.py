"""Every family of mixtures gives the tokens of transformers, wherever its experts are."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from predictor.private.experts import uses_experts_interface
from tests.checkpoints import VOCABULARY
from tests.conftest import Checkpoints
from tests.mixture.families import EXPERTS, FAMILIES, FURTHER_FAMILIES, HAS_ALL, HAS_NONE, VARIANTS
from tests.weights.experts.serving import (
    NEW_TOKENS,
    Way,
    served,
    thinned_ways,
    tokens_together,
)

END, PADDING = 2, 3

LENGTHS, OF_EACH = (2, 9, 17, 35), 4
"""Prompts that take one forward pass of 16 tokens, two and three; 16 in all."""

CLEAR = 0.15
"""The difference of the two best logits, as a fraction of their spread, above which tokens are
equal in bfloat16: the tolerance with which batching is checked at a start."""

SOME = ("aria_text", "gemma4_text", "granitemoehybrid", "nemotron_h", "qwen3_next")
"""Further families whose experts or layers are unlike those of all others."""

REST = tuple(name for name in FURTHER_FAMILIES if name not in SOME)

_chance = random.Random(7)
PROMPTS = [
    [_chance.randrange(4, VOCABULARY) for _ in range(length)]
    for length in LENGTHS
    for _ in range(OF_EACH)
]


class Reference:
    """transformers' own model, with all weights in memory."""

    def __init__(self, folder: Path, dtype: Any = "auto") -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def tokens(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Greedy tokens after prompts of one length, which need no padding."""
        ids = torch.tensor(prompts)
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=PADDING,
        )
        replies = output[:, ids.shape[1] :].tolist()
        return [reply[: reply.index(END) + 1] if END in reply else reply for reply in replies]

    @torch.inference_mode()
    def logits(self, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        """The logits of each of the tokens, of shape (tokens, vocabulary)."""
        ids = torch.tensor([prompt + tokens])
        logits: torch.Tensor = self.model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        return logits.double()


@functools.cache
def expected(folder: Path) -> list[list[int]]:
    """What transformers says to each of the prompts."""
    reference = Reference(folder)
    groups = [PROMPTS[begin : begin + OF_EACH] for begin in range(0, len(PROMPTS), OF_EACH)]
    return [reply for group in groups for reply in reference.tokens(group)]


def check_tokens(folder: Path, way: Way, offload: Path) -> None:
    """One user, then sixteen at one time, then one who finds in the slots what these left."""
    wanted = expected(folder)
    with served(folder, way, offload) as up:
        assert up.tokens(PROMPTS[0], max_new_tokens=NEW_TOKENS) == wanted[0]
        assert tokens_together(up, PROMPTS) == wanted
        assert up.tokens(PROMPTS[-1], max_new_tokens=NEW_TOKENS) == wanted[-1]


@pytest.mark.parametrize(
    ("name", "way"), thinned_ways([*FAMILIES, *VARIANTS, *SOME], otherwise=REST), ids=str
)
def test_tokens_are_those_of_transformers(
    mixtures: Checkpoints, tmp_path: Path, name: str, way: Way
) -> None:
    check_tokens(mixtures(name), way, tmp_path)


@pytest.mark.parametrize(
    ("name", "way"),
    thinned_ways(["mixtral", "deepseek_v2"], otherwise=[*FAMILIES, *FURTHER_FAMILIES]),
    ids=str,
)
def test_tokens_are_those_of_transformers_where_one_tensor_holds_all_experts_of_a_block(
    mixtures: Checkpoints, tmp_path: Path, name: str, way: Way
) -> None:
    check_tokens(mixtures(name, fused=True), way, tmp_path)


@pytest.mark.parametrize(
    ("name", "way"),
    thinned_ways(["gpt_oss", "ernie4_5_moe", "qwen3_moe"], otherwise=[*FAMILIES, *VARIANTS]),
    ids=str,
)
def test_tokens_in_bfloat16_are_those_of_transformers_where_the_best_logit_stands_out(
    mixtures: Checkpoints, tmp_path: Path, name: str, way: Way
) -> None:
    folder = mixtures(name, dtype=torch.bfloat16)
    reference, exact = Reference(folder), Reference(folder, torch.float32)
    compared = 0
    with served(folder, way, tmp_path) as up:
        replies = [up.tokens(PROMPTS[0], max_new_tokens=NEW_TOKENS)]
        replies += tokens_together(up, PROMPTS[1:])
    for prompt, reply, wanted in zip(PROMPTS, replies, expected(folder), strict=True):
        clear = count_clear(reference.logits(prompt, wanted), exact.logits(prompt, wanted))
        assert reply[:clear] == wanted[:clear]
        compared += clear
    assert compared > len(PROMPTS) // 2


def count_clear(logits: torch.Tensor, exact: torch.Tensor) -> int:
    """Return the tokens before the first that rounding may change.

    Their best logits stand out, and rounding did not make a router choose other experts.
    """
    best = exact.topk(2).values
    spread = exact.std(dim=-1)
    stands_out = best[:, 0] - best[:, 1] > CLEAR * spread
    is_near = (logits - exact).std(dim=-1) < CLEAR * spread
    return int((stands_out & is_near).int().cumprod(dim=0).sum())


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_lie_in_several_files_as_they_are_published_or_all_of_a_block_in_one_tensor(
    mixtures: Checkpoints, name: str
) -> None:
    files = {fused: weight_map(mixtures(name, fused=fused)) for fused in (False, True)}
    last = {
        fused: {
            key: file
            for key, file in of_tensors.items()
            if "layers.3." in key and ".experts." in key
        }
        for fused, of_tensors in files.items()
    }
    assert len(set(last[True].values()) | set(files[True].values())) > 1
    if name == "gpt_oss":  # published with all experts of a block in one tensor
        assert last[False].keys() == last[True].keys()
    elif name != "granitemoe":  # published so too, under another name
        assert len(last[False]) == 3 * EXPERTS
        assert len(set(last[False].values())) > 1
        assert len(last[True]) == 2


def weight_map(folder: Path) -> dict[str, str]:
    """The file of each tensor of a checkpoint."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files: dict[str, str] = index["weight_map"]
    return files


@pytest.mark.parametrize(
    "name",
    [
        *(*FAMILIES, *VARIANTS, *SOME),
        *(pytest.param(name, marks=pytest.mark.full_grid) for name in REST),
    ],
)
def test_these_mixtures_say_many_tokens_and_use_many_experts(
    mixtures: Checkpoints, name: str
) -> None:
    """Else tests with them would not see that a wrong expert is used."""
    folder = mixtures(name)
    replies = expected(folder)
    assert len({token for reply in replies for token in reply}) > 20
    *_, counts = (uses_of(experts) for experts in routed(Reference(folder), replies))
    if name.endswith("one has all"):
        assert counts[HAS_ALL] == sum(len(prompt) for prompt in PROMPTS) + sum(map(len, replies))
        assert counts[HAS_NONE] == 0
    else:
        assert (counts > 0).sum() > EXPERTS // 2


def routed(reference: Reference, replies: Sequence[list[int]]) -> list[torch.Tensor]:
    """The choices of experts of each block, of shape (tokens, routed), for prompts and replies."""
    modules = [module for module in reference.model.modules() if uses_experts_interface(module)]
    chosen: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(modules))}
    for index, module in enumerate(modules):
        module.register_forward_pre_hook(
            lambda _, args, kwargs, to=chosen[index]: to.append(choice_of(args, kwargs)),
            with_kwargs=True,
        )
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        reference.logits(prompt, reply)
    return [torch.cat(parts) for parts in chosen.values()]


def choice_of(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
    choice: torch.Tensor = args[1] if len(args) > 1 else kwargs["top_k_index"]
    return choice


def uses_of(choices: torch.Tensor) -> torch.Tensor:
    """How many tokens chose each expert."""
    return torch.bincount(choices.flatten(), minlength=EXPERTS)
