"""Every placement of every architecture gives the tokens that transformers gives without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import Checkpoints
from tests.grids import thinned
from tests.serving import blocks_on_disk, bring_up

PROMPTS = ("The quick brown fox", "Zwölf Boxkämpfer jagen Viktor quer über den Deich, sagt man; ja")
NEW_TOKENS = 12


def reference(folder: Path, ids: list[int]) -> list[int]:
    """Greedy tokens of transformers' own generate, with everything in memory and no chunks."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    prompt = torch.tensor([ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    return list(output[0, len(ids) :].tolist())


def encode(folder: Path, prompt: str) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(folder)(prompt).input_ids
    return ids


def placements(folder: Path) -> dict[str, Any]:
    return {"memory": "cpu", "mixed": blocks_on_disk(folder), "disk": "disk"}


CASES = [
    ("bloom", {}),
    ("bloom", {"dtype": torch.bfloat16}),
    ("gpt2", {}),
    ("gpt2", {"shards": False}),
    ("llama", {}),
    ("llama", {"dtype": torch.bfloat16, "shards": False}),
    ("llama-tied", {}),
    ("opt", {}),
    ("opt", {"pickle": True}),
    ("llama", {"pickle": True}),
    ("mixtral", {}),
]


@pytest.mark.parametrize(
    ("case", "where"),
    thinned(CASES, ["memory", "mixed", "disk"], also=lambda _, where: where == "mixed"),
    ids=str,
)
def test_greedy_tokens_are_those_of_transformers_wherever_the_weights_are(
    checkpoints: Checkpoints,
    tmp_path: Path,
    case: tuple[str, dict[str, Any]],
    where: str,
) -> None:
    architecture, form = case
    folder = checkpoints(architecture, **form)
    up = bring_up(
        folder,
        device_map=placements(folder)[where],
        allow_pickle=form.get("pickle", False),
        offload_folder=str(tmp_path / "offload"),
    )
    devices = set(up.prepared.placement.device_map.values())
    assert devices == {"memory": {"cpu"}, "mixed": {"cpu", "disk"}, "disk": {"disk"}}[where]
    for prompt in PROMPTS:
        ids = encode(folder, prompt)
        generated = up.tokens(ids, max_new_tokens=NEW_TOKENS)
        assert generated == reference(folder, ids)


def test_a_checkpoint_stored_in_fp32_is_served_in_bf16_from_every_tier(
    checkpoints: Checkpoints,
) -> None:
    folder = checkpoints("llama")
    maps = placements(folder)
    outputs = []
    for where in maps.values():
        up = bring_up(folder, device_map=where, dtype="bfloat16")
        assert up.model.dtype == torch.bfloat16
        assert up.prepared.footprint.needs_cast
        ids = encode(folder, PROMPTS[0])
        outputs.append(up.tokens(ids, max_new_tokens=8))
    assert outputs[0] == outputs[1] == outputs[2]


def test_a_plan_for_little_memory_puts_blocks_on_disk_and_still_answers(
    checkpoints: Checkpoints,
) -> None:
    folder = checkpoints("bloom")
    up = bring_up(folder, max_memory='{"cpu": "1500KiB"}')
    placement = up.prepared.placement
    assert "disk" in {placement.device_map[f"transformer.h.{index}"] for index in range(6)}
    assert placement.device_map["lm_head"] == "cpu"
    ids = encode(folder, PROMPTS[0])
    tokens = up.tokens(ids, max_new_tokens=NEW_TOKENS)
    assert tokens == reference(folder, ids)


def test_parts_on_disk_stay_out_of_memory(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama")
    up = bring_up(folder, device_map=blocks_on_disk(folder))
    on_meta = {name for name, tensor in up.model.named_parameters() if tensor.device.type == "meta"}
    assert on_meta
    assert all(name.split(".")[2] in "024" for name in on_meta)


def test_a_model_that_reads_whole_prompts_is_planned_for_whole_prompts(tmp_path: Path) -> None:
    from transformers import RwkvConfig

    from predictor.checkpoint.checkpoint import Checkpoint
    from predictor.settings import read_settings
    from predictor.startup import prepare
    from tests.serving import resources

    config = RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=100, context_length=2048)
    config.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path, config, "safetensors", None)
    settings = read_settings({"max_model_len": 2048, "prefill_chunk": 16}, environ={})
    prepared = prepare(settings, checkpoint, resources())
    assert prepared.chunk == 2048
    assert prepared.placement.max_model_len == 2048
    assert prepared.placement.kv_tokens == 0  # it keeps a state alone


def test_a_context_of_very_few_tokens_can_be_served(checkpoints: Checkpoints) -> None:
    up = bring_up(checkpoints("llama"), device_map="cpu", max_model_len=16, max_concurrency=1)
    assert len(up.tokens([5, 6, 7], max_new_tokens=4)) == 4
