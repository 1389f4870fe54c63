"""Which layers are packed: by the files; and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config

from predictor import startup
from predictor.errors import CheckpointError
from predictor.placement.report import as_json, table
from predictor.settings import read_settings
from predictor.startup import Prepared
from tests.checkpoints import make_checkpoint
from tests.mixture.families import family_config
from tests.quantization.checkpoints import fp8_blocks, quantise
from tests.serving import resources

Tensors = dict[str, torch.Tensor]

FORM = fp8_blocks(32)
LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return quantise(make_checkpoint(folder / "made", "llama"), folder, FORM)[0]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    config = family_config("qwen3_moe")
    made = make_checkpoint(folder / "made", "llama", config=config)
    return quantise(made, folder, FORM)[0]


def planned(folder: Path, **flags: Any) -> Prepared:
    flags = {"model_dir": str(folder), "max_model_len": 64, **flags}
    settings = read_settings(flags, environ={})
    checkpoint = startup.open_checkpoint(settings, needs_weights=False)
    return startup.prepare(settings, checkpoint, resources())


def changed(
    folder: Path,
    target: Path,
    change: Callable[[Tensors], Any] = lambda _: None,
    config: dict[str, Any] | None = None,
) -> Path:
    """A copy of a checkpoint with other tensors, and with other entries of its config."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    entries = json.loads((folder / "config.json").read_text()) | (config or {})
    (target / "config.json").write_text(json.dumps(entries))
    return target


def packed_bytes(folder: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize("name", ["llama", "mixture"])
def test_the_plan_has_the_bytes_of_the_files(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    prepared = planned(folder)
    assert prepared.footprint.weights == packed_bytes(folder)
    first = table(prepared.placement).splitlines()[0]
    assert first.endswith(f"in {FORM.title}, computed in float32")
    assert as_json(prepared.placement)["quantization"] == FORM.title


@pytest.mark.parametrize("name", ["llama", "mixture"])
def test_a_bare_config_is_planned_alike(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(name)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert planned(tmp_path).footprint.weights == packed_bytes(folder)


def test_a_layer_that_is_stored_unpacked_is_served_so(llama: Path, tmp_path: Path) -> None:
    def unpack(tensors: Tensors) -> None:
        tensors[f"{LAYER}.weight"] = tensors[f"{LAYER}.weight"].float()
        del tensors[f"{LAYER}.weight_scale_inv"]

    packed = planned(changed(llama, tmp_path, unpack)).packed
    assert LAYER not in packed.linears
    assert len(packed.linears) == 6 * 7 - 1


def test_files_say_enough_without_a_config(llama: Path, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path, config={"quantization_config": None})
    with pytest.raises(CheckpointError, match="packed as weight, weight_scale_inv"):
        planned(folder)  # blocks of 32 are published nowhere


def test_layers_that_the_model_lacks_are_named(llama: Path, tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        for key in ("weight", "weight_scale_inv"):
            stored = tensors[f"{LAYER}.{key}"].clone()
            tensors[f"model.layers.6.mtp.up_proj.{key}"] = stored

    prepared = planned(changed(llama, tmp_path, add))
    assert prepared.packed.dropped == ("model.layers.6",)
    assert "note: model.layers.6 of the checkpoint is no part of the model" in table(
        prepared.placement
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.uint8])
def test_masks_and_positions_are_no_packed_weights(
    llama: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    def unpack(tensors: Tensors) -> None:
        for name in list(tensors):
            if name.endswith("weight_scale_inv"):
                del tensors[name]
            else:
                tensors[name] = tensors[name].float()
        tensors["model.layers.1.self_attn.positions"] = torch.ones(4, dtype=dtype)

    folder = changed(llama, tmp_path, unpack, config={"quantization_config": None})
    assert not planned(folder).packed.title
    assert planned(folder, weights_dtype="int8").packed.title == "int8 (per channel)"


def test_layers_whose_weights_the_model_uses_itself_stay_unpacked(tmp_path: Path) -> None:
    entries = T5Config(d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16, vocab_size=64)
    (tmp_path / "config.json").write_text(json.dumps(entries.to_dict()))
    settings = {"task": "text2text_generation", "weights_dtype": "int8"}
    linears = planned(tmp_path, **settings).packed.linears
    assert linears
    assert {name.rpartition(".")[2] for name in linears} == {"q", "k", "v", "o", "wi"}


def _without_scale(tensors: Tensors) -> None:
    del tensors[f"{LAYER}.weight_scale_inv"]


def _with_another_scale(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight_scale_2"] = torch.ones(1)


def _with_a_scale_elsewhere(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.something_scale"] = torch.ones(1)


def _with_a_packed_norm(tensors: Tensors) -> None:
    name = "model.layers.1.input_layernorm.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def _with_packed_embeddings(tensors: Tensors) -> None:
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name].to(torch.int8)


def _of_another_shape(tensors: Tensors) -> None:
    name = f"{LAYER}.weight_scale_inv"
    tensors[name] = tensors[name][:1].clone()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without_scale, LAYER),
        (_with_another_scale, f"{LAYER}.*weight_scale_2"),
        (_with_a_scale_elsewhere, "mlp.something_scale"),
        (_with_a_packed_norm, "input_layernorm"),
        (_with_packed_embeddings, "embed_tokens"),
        (_of_another_shape, f"{LAYER}.*shape"),
    ],
)
def test_what_nothing_takes_is_refused_by_name(
    llama: Path, tmp_path: Path, change: Callable[[Tensors], Any], sentence: str
) -> None:
    folder = changed(llama, tmp_path, change)
    with pytest.raises(CheckpointError, match=sentence) as raised:
        planned(folder)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


def _first_expert_unpacked(tensors: Tensors) -> None:
    name = "model.layers.0.mlp.experts.0.gate_proj.weight"
    tensors[name] = tensors[name].float()
    del tensors[f"{name}_scale_inv"]


def _first_layer_unpacked(tensors: Tensors) -> None:
    for name in list(tensors):
        if "layers.0.mlp.experts" in name:
            tensor = tensors.pop(name)
            if not name.endswith("scale_inv"):
                tensors[name] = tensor.float()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_first_expert_unpacked, r"experts\.1\.gate_proj is packed in another way"),
        (_first_layer_unpacked, r"experts of model\.layers\.0\.mlp\.experts are not packed"),
    ],
)
def test_experts_that_are_not_alike_are_refused(
    mixture: Path, tmp_path: Path, change: Callable[[Tensors], Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        planned(changed(mixture, tmp_path, change))


@pytest.mark.parametrize(
    ("config", "word"),
    [({"quant_method": "aqlm"}, "aqlm"), ({"quant_method": "gptq", "bits": 5}, "bits is 5")],
)
def test_a_method_that_is_not_served_is_named(
    llama: Path, tmp_path: Path, config: dict[str, Any], word: str
) -> None:
    with pytest.raises(CheckpointError, match=word):
        planned(changed(llama, tmp_path, config={"quantization_config": config}))
