"""The draft model in the plan, its checks before loading, and a server with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, MambaConfig

from predictor import startup
from predictor.errors import ConfigurationError, PredictorError
from predictor.placement.plan import Placement
from predictor.placement.report import as_json, table
from predictor.quantity import format_bytes
from predictor.settings import read_settings
from tests.checkpoints import VOCABULARY, make_checkpoint
from tests.conftest import Checkpoints
from tests.serving import GIB, blocks_on_disk, bring_up, resources


def planned(folder: Path, draft: Path | None, **flags: Any) -> Placement:
    settings = read_settings(
        {
            "model_dir": str(folder),
            "draft_model_dir": None if draft is None else str(draft),
            "max_model_len": 128,
            "max_concurrency": 2,
            **flags,
        },
        environ={},
    )
    checkpoint = startup.open_checkpoint(settings)
    return startup.prepare(settings, checkpoint, resources(GIB)).placement


def refusal(folder: Path, draft: Path) -> PredictorError:
    with pytest.raises(ConfigurationError) as raised:
        planned(folder, draft)
    assert raised.value.exit_code == 78
    return raised.value


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "draft", "gpt2")


def test_the_plan_has_the_weights_and_the_cache_of_the_draft_model(
    checkpoints: Checkpoints, other: Path
) -> None:
    folder = checkpoints("llama")
    alone, beside = planned(folder, None), planned(folder, other)
    draft, tiers = beside.draft_model, (alone.tier("cpu"), beside.tier("cpu"))
    assert alone.draft_model is None
    assert draft is not None
    drafts_alone = planned(other, None)
    assert draft.weights == drafts_alone.tier("cpu").weights
    assert draft.kv_per_token * beside.kv_tokens == drafts_alone.tier("cpu").kv
    assert tiers[1].weights - tiers[0].weights == draft.weights
    assert tiers[1].kv - tiers[0].kv == drafts_alone.tier("cpu").kv
    assert beside.device_map == alone.device_map
    assert f"draft model: GPT2LMHeadModel in float32, {format_bytes(draft.weights)}" in table(
        beside
    )
    assert json.loads(json.dumps(as_json(beside)))["draft_model"]["weights"] == draft.weights
    assert as_json(alone)["draft_model"] is None


def test_a_draft_model_is_planned_with_an_explicit_device_map(
    checkpoints: Checkpoints, other: Path
) -> None:
    folder = checkpoints("llama")
    device_map = json.dumps(blocks_on_disk(folder))
    alone, beside = (planned(folder, each, device_map=device_map) for each in (None, other))
    assert beside.device_map == alone.device_map
    assert beside.tier("cpu").weights > alone.tier("cpu").weights
    assert beside.tier("disk") == alone.tier("disk")


def test_another_tokenizer_is_refused_before_anything_is_loaded(
    checkpoints: Checkpoints, other: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    sentence = str(refusal(checkpoints("llama"), other))
    assert sentence.startswith(
        f"draft_model_dir: the tokenizer of {other} is not that of the model"
    )
    assert "1 entries, such as 'another'" in sentence or '1 entries, such as "another"' in sentence


def test_models_that_cannot_go_back_are_no_draft_models_and_have_none(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2)
    mamba = make_checkpoint(tmp_path / "mamba", "mamba", config=config)
    assert "a MambaForCausalLM cannot draft" in str(refusal(checkpoints("llama"), mamba))
    assert "no drafts can be verified" in str(refusal(mamba, checkpoints("llama")))


def test_a_missing_draft_model_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    assert "There is no model directory" in str(refusal(checkpoints("llama"), tmp_path / "none"))


def test_a_server_loads_a_draft_model_and_its_replies_are_the_same(
    checkpoints: Checkpoints, tmp_path: Path, other: Path
) -> None:
    folder = checkpoints("llama")
    flags: dict[str, Any] = {
        "offload_folder": str(tmp_path / "offload"),
        "device_map": blocks_on_disk(folder),
        "prompt_lookup_num_tokens": 0,
    }
    replies = []
    for draft in (None, other):
        up = bring_up(folder, draft_model_dir=None if draft is None else str(draft), **flags)
        engine = up.task.engine
        replies.append(up.tokens([7, 8, 9], max_new_tokens=20, ignore_eos=True))
        cost = engine.limits.draft_model_cost.one
        assert (engine.limits.draft_tokens, cost > 0) == ((7, True) if draft else (0, False))
        engine.stop()
        assert engine.join(30)
    assert replies[0] == replies[1]
