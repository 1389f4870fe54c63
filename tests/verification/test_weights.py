"""Files that are not those of the model are refused before a weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from predictor import startup
from predictor.errors import CheckpointError
from predictor.settings import read_settings
from tests.conftest import Checkpoints
from tests.encoding.checkpoints import make_encoder, make_encoder_decoder
from tests.serving import resources

State = dict[str, torch.Tensor]


def planned(folder: Path, **flags: Any) -> startup.Prepared:
    """What `predictor plan` makes of a directory; no weight is read."""
    settings = read_settings({"model_dir": str(folder), "max_model_len": 16, **flags}, environ={})
    return startup.prepare(settings, startup.open_checkpoint(settings), resources())


def edited(source: Path, folder: Path, change: Callable[[State], object]) -> Path:
    """Copies a model into one file, with other tensors."""
    shutil.copytree(source, folder)
    state: State = {}
    for file in folder.glob("*.safetensors*"):
        state |= {} if file.suffix == ".json" else load_file(file)
        file.unlink()
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configured(folder: Path, **values: Any) -> Path:
    """Changes values of a model's config."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def without(*parts: str) -> Callable[[State], object]:
    """A change that leaves out tensors with one of these parts in their names."""

    def change(state: State) -> None:
        for name in [name for name in state if any(part in name for part in parts)]:
            del state[name]

    return change


def transposed(part: str) -> Callable[[State], object]:
    """A change that transposes matrices with this part in their names."""
    return lambda state: state.update(
        {name: one.T.contiguous() for name, one in state.items() if part in name}
    )


def same(state: State) -> None:
    """Change nothing."""


EXPERT = "model.layers.1.block_sparse_moe.experts"

DAMAGES = {
    "a lost matrix": ("gpt2", without("h.3.mlp.c_fc.weight"), {}, "lacks a weight .*h.3.mlp.c_fc"),
    "a lost bias": ("opt", without("3.fc1.bias"), {}, "lacks a weight of OPT.*fc1.bias"),
    "no head": (
        "llama",
        without("lm_head", "embed"),
        {},
        "lacks 2 weights .*, lm_head.* and model.emb",
    ),
    "no tied pair": ("llama-tied", without("embed"), {}, "lacks a weight of Llama.*embed_tokens"),
    "no block": ("bloom", without(".h.2."), {}, "lacks 12 weights of Bloom.*h.2.input_layernorm"),
    "an expert's way down": ("mixtral", without(f"{EXPERT}.3.w2"), {}, f"{EXPERT}.3.w2.weight"),
    "an expert's way up": ("mixtral", without(f"{EXPERT}.2.w3"), {}, f"{EXPERT}.2.w3.weight"),
    "a whole expert": ("mixtral", without(f"{EXPERT}.0"), {}, "lacks 3 weights.*experts.0.w1"),
    "all ways up": ("mixtral", without("w3"), {}, "lacks 4 weights.*up_proj"),
    "all experts": ("mixtral", without("experts"), {}, "lacks 8 weights.*0.mlp.experts.down_proj"),
    "more experts": ("mixtral", same, {"num_local_experts": 5}, "lacks 12 weights.*experts.4.w1"),
    "fewer experts": ("mixtral", same, {"num_local_experts": 3}, r"\[4, 192, 64\].*\[3, 192, 64\]"),
    "more blocks": ("llama", same, {"num_hidden_layers": 7}, "lacks 9 weights.*layers.6"),
    "resized": ("llama", same, {"vocab_size": 300}, r"weight .*\[264.*\[300, 64\]"),
    "resized and tied": ("llama-tied", same, {"vocab_size": 300}, r"\[264, 64\].*\[300, 64\]"),
    "longer": ("gpt2", same, {"n_positions": 300}, r"wpe.weight .*\[256, 64\].*\[300, 64\]"),
    "transposed": ("llama", transposed("4.mlp.up_proj"), {}, r"4.mlp.*\[64, 176\].*\[176, 64\]"),
    "a vector": ("gpt2", lambda s: s.update({"transformer.ln_f.bias": torch.zeros(7)}), {}, r"\[7"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_tensors_than_the_models_are_named(
    checkpoints: Checkpoints, tmp_path: Path, damage: str
) -> None:
    architecture, change, config, reason = DAMAGES[damage]
    source = checkpoints(architecture, shards=False)
    folder = configured(edited(source, tmp_path / "model", change), **config)

    with pytest.raises(CheckpointError, match=reason):
        planned(folder)


ENCODERS = {
    "a head": ("token_classification", without("classifier.weight"), "lacks a weight of Bert"),
    "labels": ("sequence_classification", transposed("classifier.weight"), r"\[64, 3\]"),
    "a block": ("text_embedding", without("encoder.layer.1."), "lacks 16 weights of BertModel"),
}


@pytest.mark.parametrize("damage", ENCODERS)
def test_the_same_of_encoders(tmp_path: Path, damage: str) -> None:
    task, change, reason = ENCODERS[damage]
    source = make_encoder(tmp_path / "source", "bert", task)
    folder = edited(source, tmp_path / "model", change)

    assert planned(source, task=task)
    with pytest.raises(CheckpointError, match=reason):
        planned(folder, task=task)


def test_a_pooler_is_not_missed_in_embeddings(tmp_path: Path) -> None:
    source = make_encoder(tmp_path / "source", "bert", "text_embedding")

    assert planned(edited(source, tmp_path / "model", without("pooler")), task="text_embedding")


@pytest.mark.parametrize(
    ("architecture", "part"), [("t5", "decoder.block.1"), ("bart", "encoder.layers.0.fc1")]
)
def test_the_same_of_encoder_decoders(tmp_path: Path, architecture: str, part: str) -> None:
    source = make_encoder_decoder(tmp_path / "source", architecture)
    folder = edited(source, tmp_path / "model", without(part))

    assert planned(source)
    with pytest.raises(CheckpointError, match=rf"lacks .*{part}"):
        planned(folder)


def test_the_same_of_pickles(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints("opt", pickle=True), folder)
    state = torch.load(folder / "pytorch_model.bin")
    del state["model.decoder.layers.3.fc2.weight"]
    torch.save(state, folder / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"lacks a weight of OPT.*layers\.3\.fc2\.weight"):
        planned(folder, allow_pickle=True)


def test_of_a_pickle_of_the_old_format_nothing_is_checked(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints("opt", pickle=True), folder)
    file = folder / "pytorch_model.bin"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)

    assert planned(folder, allow_pickle=True)


class Command:
    """What a pickle should not hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize("content", [{"a": Command()}, [torch.zeros(2)]], ids=["code", "a list"])
def test_a_pickle_of_something_else_is_refused(
    checkpoints: Checkpoints, tmp_path: Path, capsys: Any, content: object
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints("opt", pickle=True), folder)
    torch.save(content, folder / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin (is damaged|holds no tensors)"):
        planned(folder, allow_pickle=True)
    assert capsys.readouterr().out == ""


def test_both_are_named_where_the_weights_that_are_used_lack_some(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints("llama"), folder)
    stray = {f"foreign.{index}": torch.zeros(1) for index in range(100)}
    save_file(stray, folder / "model.safetensors")

    with pytest.raises(CheckpointError) as raised:
        planned(folder)

    assert str(raised.value) == (
        f"{folder} lacks 57 weights of LlamaForCausalLM, lm_head.weight among them; the weights "
        "are those in model.safetensors, and model.safetensors.index.json was not used."
    )
