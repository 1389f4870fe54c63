"""Quantised checkpoints give what transformers gives with the weights unpacked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import make_checkpoint
from tests.mixture.families import family_config
from tests.quantization.checkpoints import Format, fp8_blocks, quantise
from tests.serving import Up, blocks_on_disk, bring_up
from tests.weights.experts.serving import Way, served

FORMATS = {"fp8": fp8_blocks(32)}
DENSE = ("llama",)
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3")

PROMPTS = [list(range(5, 5 + length)) for length in (2, 9, 17, 40)]
NEW_TOKENS = 8


class Quantised:
    """A quantised checkpoint, and what transformers says with its unpacked weights."""

    def __init__(self, folder: Path, architecture: str, form: Format) -> None:
        self.architecture = architecture
        config = None if architecture in DENSE else family_config(architecture)
        made = make_checkpoint(folder / "made", "llama", config=config)
        self.folder, plain = quantise(made, folder, form)
        model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
        self.tokens = [greedy(model, prompt) for prompt in PROMPTS]
        with torch.inference_mode():
            self.logits = model(torch.tensor(PROMPTS[-1:]), use_cache=False).logits


def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=3
    )
    return output[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=[(a, f) for f in FORMATS for a in (*DENSE, *MIXTURES)])
def quantised(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Quantised:
    architecture, form = request.param
    folder = tmp_path_factory.mktemp(f"{architecture}-{form}")
    return Quantised(folder, architecture, FORMATS[form])


def replies(up: Up) -> list[list[int]]:
    return [up.tokens(prompt, max_new_tokens=NEW_TOKENS) for prompt in PROMPTS]


def stopped(up: Up) -> None:
    up.task.engine.stop()
    assert up.task.engine.join(30)
    up.weights.release()
    if up.weights.experts is not None:
        up.weights.experts.close()


def test_resident(quantised: Quantised) -> None:
    up = bring_up(quantised.folder, dtype="float32")
    assert replies(up) == quantised.tokens
    with torch.inference_mode():
        logits = up.model(torch.tensor(PROMPTS[-1:]), use_cache=False).logits
    assert torch.allclose(logits, quantised.logits, atol=1e-5, rtol=1e-5)
    stopped(up)


@pytest.mark.parametrize("store", ["never", "always"])
def test_blocks_on_disk(quantised: Quantised, tmp_path: Path, store: str) -> None:
    up = bring_up(
        quantised.folder,
        dtype="float32",
        device_map=blocks_on_disk(quantised.folder),
        offload_folder=str(tmp_path),
        offload_store=store,
    )
    assert up.sources == {"store" if store == "always" else "checkpoint"}
    assert replies(up) == quantised.tokens
    stopped(up)


@pytest.mark.parametrize("way", [Way(1, "checkpoint"), Way(3, "store")], ids=str)
def test_experts_in_slots(quantised: Quantised, tmp_path: Path, way: Way) -> None:
    if quantised.architecture in DENSE:
        pytest.skip("it has no experts")
    with served(quantised.folder, way, tmp_path, dtype="float32") as up:
        assert replies(up) == quantised.tokens
