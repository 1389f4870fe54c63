"""Small models that can be quantised in every format, and what transformers says with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from tests.checkpoints import ALL_CONFIGS, make_checkpoint
from tests.mixture.families import family_config, make_family
from tests.quantization.checkpoints import Format, quantise
from tests.serving import Up
from tests.weights.experts.test_families import END, PADDING

PROMPTS = [list(range(5, 5 + length)) for length in (2, 9, 17, 40)]
NEW_TOKENS = 8

_MULTIPLES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16},
}
"""Entries with which all matrices have multiples of 32 inputs and of 8 outputs."""


def small_config(name: str) -> PreTrainedConfig:
    """The config of a small model, all of whose layers can be packed in every format."""
    if name == "llama":
        entries = ALL_CONFIGS["llama"].to_dict() | {"intermediate_size": 192}
        return LlamaConfig.from_dict(entries | {"num_hidden_layers": 3})
    if name in ALL_CONFIGS:
        return ALL_CONFIGS[name]
    return family_config(name, **_MULTIPLES.get(name, {}))


@dataclass(frozen=True)
class Quantised:
    """A quantised checkpoint.

    Attributes:
        name: The model.
        form: How it is quantised.
        folder: The checkpoint.
        plain: One with the unpacked weights.
        tokens: What transformers says with these.
        logits: Those after the last prompt.
    """

    name: str
    form: Format
    folder: Path
    plain: Path
    tokens: list[list[int]] = dataclasses.field(default_factory=list)
    logits: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))


def make_quantised(folder: Path, name: str, form: Format, **how: Any) -> Quantised:
    """Writes a quantised checkpoint, and computes what transformers says with its weights.

    Args:
        folder: Where to write.
        name: The model.
        form: How to quantise it.
        how: Arguments of `quantise`.
    """
    fused = how.pop("fused", False)
    if fused or form.of_gpt_oss:
        made = make_family(folder / "made", name, fused=True)
    else:
        made = make_checkpoint(folder / "made", "llama", config=small_config(name))
    packed, plain = quantise(made, folder, form, **how)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    tokens = [greedy(model, prompt) for prompt in PROMPTS]
    with torch.inference_mode():
        logits = model(torch.tensor(PROMPTS[-1:]), use_cache=False).logits
    return Quantised(name, form, packed, plain, tokens, logits)


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """The tokens that follow a prompt."""
    output = model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=PADDING
    )
    reply: list[int] = output[0, len(prompt) :].tolist()
    return reply[: reply.index(END) + 1] if END in reply else reply


def replies(up: Up) -> list[list[int]]:
    """What a model that is up says, to one user at a time."""
    return [up.tokens(prompt, max_new_tokens=NEW_TOKENS) for prompt in PROMPTS]
