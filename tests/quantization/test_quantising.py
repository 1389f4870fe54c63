"""Checkpoints that are not quantised are packed while they are loaded, wherever they are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from predictor.errors import ConfigurationError
from predictor.linear.formats.int4 import Int4
from predictor.linear.formats.int8 import Int8
from predictor.placement.report import table
from predictor.quantization.quantising import layers_to_quantise
from tests.checkpoints import VOCABULARY, byte_tokenizer, make_checkpoint
from tests.mixture.families import family_config
from tests.quantization.checkpoints import fp8_blocks, quantise
from tests.quantization.models import PROMPTS, greedy, replies
from tests.quantization.test_served import DENSE, stopped
from tests.serving import blocks_on_disk, bring_up, metric
from tests.weights.experts.serving import Way, served

FORMATS = {"int8": Int8(), "int4": Int4.here()}


class Unquantised:
    """A checkpoint, and what transformers says with weights that were packed and unpacked."""

    def __init__(self, folder: Path, architecture: str, weights_dtype: str) -> None:
        self.architecture, self.weights_dtype = architecture, weights_dtype
        config = None if architecture in DENSE else family_config(architecture)
        self.folder = make_checkpoint(folder, "llama", config=config)
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        _round_weights(model, FORMATS[weights_dtype])
        self.tokens = [greedy(model, prompt) for prompt in PROMPTS]
        with torch.inference_mode():
            self.logits = model(torch.tensor(PROMPTS[-1:]), use_cache=False).logits


@torch.no_grad()
def _round_weights(model: Any, weights: Int8 | Int4) -> None:
    small = set(_small(model))
    for name, parameter in model.named_parameters():
        if ".layers." not in name or "norm" in name or "gate.weight" in name:
            continue
        if parameter.dim() == 3:  # the experts of a layer
            for expert in parameter:
                matrix = expert.T if "gpt_oss" in str(type(model)).lower() else expert
                matrix.copy_(_rounded(matrix, weights))
        elif (
            parameter.dim() == 2
            and name.endswith("weight")
            and "router" not in name
            and "bias" not in name
        ):
            parameter.copy_(_rounded(parameter, Int8() if name in small else weights))


def _small(model: Any) -> Iterator[str]:
    """Layers with a sixteenth of the weights of their block's linear layers, or less."""
    blocks: dict[str, dict[str, int]] = {}
    for name, module in model.named_modules():
        before, _, after = name.partition(".layers.")
        if isinstance(module, nn.Linear) and after and not after.endswith(("gate", "router")):
            block = f"{before}.{after.partition('.')[0]}"
            blocks.setdefault(block, {})[f"{name}.weight"] = module.weight.numel()
    for layers in blocks.values():
        yield from (name for name, size in layers.items() if 16 * size <= sum(layers.values()))


def _rounded(matrix: torch.Tensor, preferred: Int8 | Int4) -> torch.Tensor:
    rows, columns = matrix.shape
    fits = isinstance(preferred, Int8) or not (columns % preferred.group or rows % 16)
    weights = preferred if fits else Int8()
    return weights.unpack(weights.quantise(matrix.clone()), 0, rows, torch.float32)


@pytest.fixture(
    scope="module",
    params=[(a, d) for d in FORMATS for a in ("llama", "qwen3_moe", "gpt_oss")],
    ids="-".join,
)
def unquantised(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Unquantised:
    return Unquantised(tmp_path_factory.mktemp("unquantised"), *request.param)


def test_small_layers_of_int4_stay_at_int8() -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    blocks = [f"model.layers.{at}" for at in range(2)]
    int4, int8 = (layers_to_quantise(model, blocks, dtype) for dtype in ("int4", "int8"))
    # 64 x 32 of 64 x (64 + 32 + 32 + 64 + 3 * 128) weights
    names = {name.rpartition(".")[2] for name, m in int4.linears.items() if m.format == Int8()}
    assert names == {"k_proj", "v_proj"}
    assert int4.title == "int4 (groups of 32), int8 (per channel)"
    assert int8.title == "int8 (per channel)"
    assert int4.quantised_to != Int4.here().key  # stores of all layers in int4 are others


def test_resident(unquantised: Unquantised) -> None:
    up = bring_up(unquantised.folder, weights_dtype=unquantised.weights_dtype)
    first = table(up.prepared.placement).splitlines()[0]
    assert f" in {unquantised.weights_dtype} (" in first
    assert replies(up) == unquantised.tokens
    with torch.inference_mode():
        logits = up.model(torch.tensor(PROMPTS[-1:]), use_cache=False).logits
    assert torch.allclose(logits, unquantised.logits, atol=1e-4, rtol=1e-4)
    stopped(up)


def test_later_starts_read_what_stays_in_memory_from_the_store(
    unquantised: Unquantised, tmp_path: Path
) -> None:
    for hits in (0, 1):
        up = bring_up(
            unquantised.folder,
            weights_dtype=unquantised.weights_dtype,
            offload_folder=str(tmp_path),
            model_name=tmp_path.name,
        )
        assert metric("predictor_offload_store_hits_total", tmp_path.name) == hits
        assert replies(up) == unquantised.tokens
        assert up.sources == set()
        stopped(up)
    assert not any(path.is_dir() for path in tmp_path.iterdir())  # what was converted is gone


def test_a_volume_without_room_for_the_store_is_done_without(
    unquantised: Unquantised, tmp_path: Path
) -> None:
    up = bring_up(
        unquantised.folder,
        weights_dtype=unquantised.weights_dtype,
        offload_folder=str(tmp_path),
        free=1024**2 // 8,
    )
    assert replies(up) == unquantised.tokens
    assert not [*tmp_path.glob("*.store")]
    stopped(up)


def test_blocks_on_disk(unquantised: Unquantised, tmp_path: Path) -> None:
    settings = {
        "weights_dtype": unquantised.weights_dtype,
        "device_map": blocks_on_disk(unquantised.folder),
        "offload_folder": str(tmp_path),
    }
    for _ in range(2):  # the second start has the first one's store
        up = bring_up(unquantised.folder, **settings)
        assert up.sources == {"store"}
        assert replies(up) == unquantised.tokens
        stopped(up)
    (store,) = tmp_path.glob("*.store")
    assert unquantised.weights_dtype in store.name


@pytest.mark.parametrize("way", [Way(1, "store"), Way(3, "store")], ids=str)
def test_experts_in_slots(unquantised: Unquantised, tmp_path: Path, way: Way) -> None:
    if unquantised.architecture in DENSE:
        pytest.skip("it has no experts")
    flags = {"weights_dtype": unquantised.weights_dtype}
    with served(unquantised.folder, way, tmp_path, **flags) as up:
        assert replies(up) == unquantised.tokens


def test_a_model_that_draws_weights_by_way_of_their_owners(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4}
    ids = {"decoder_start_token_id": 0, "pad_token_id": 3, "eos_token_id": 2}
    model = T5ForConditionalGeneration(T5Config(**shape, **ids, vocab_size=VOCABULARY))
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    up = bring_up(tmp_path, task="text2text_generation", weights_dtype="int8")
    assert up.tokens(PROMPTS[0], max_new_tokens=3)
    for block, own in zip(up.model.decoder.block, model.decoder.block, strict=True):
        packed, plain = block.layer[0].SelfAttention.q, own.layer[0].SelfAttention.q
        expected = Int8().quantise(plain.weight.detach().clone())
        assert {name: packed.get_parameter(name).tolist() for name in expected} == {
            name: tensor.tolist() for name, tensor in expected.items()
        }
    stopped(up)


def test_a_quantised_checkpoint_is_not_quantised_again(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "made", "llama")
    folder, _ = quantise(made, tmp_path, fp8_blocks(32))
    with pytest.raises(ConfigurationError, match="already quantised as fp8"):
        bring_up(folder, weights_dtype="int8")
