"""Rows of one forward pass use different LoRA adapters, each as if it were merged and alone."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, MambaConfig

from predictor import startup
from predictor.checkpoint.adapters import read_adapter
from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.errors import CheckpointError, ConfigurationError
from predictor.settings import read_settings
from tests.adapters import merged, write_adapter
from tests.checkpoints import VOCABULARY, make_checkpoint
from tests.conftest import Checkpoints
from tests.engine.test_engine import Held
from tests.serving import Collected, Up, blocks_on_disk, bring_up, resources

TOKENS = 8

CASES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "llama": (None, ("q_proj", "v_proj", "down_proj")),
    "mistral": (None, ("o_proj", "gate_proj", "lm_head")),
    "bloom": (None, ("query_key_value", "dense_h_to_4h")),
    "mamba": (
        MambaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            state_size=4,
            num_hidden_layers=3,
            tie_word_embeddings=False,
        ),
        ("in_proj",),
    ),
}
"""Models, and the layers that an adapter changes."""

ALPHA = {"llama": 8, "mistral": 8, "bloom": 8, "mamba": 4000}
"""Mamba's mixers hardly count beside its embeddings in a model with random weights."""

PROMPTS = ([5, 6, 7, 8, 9], [30, 31], [12, 13, 14], [40, 41, 42, 43])


def reference(folder: Path, adapter: Path | None, prompt: list[int], scale: float = 0) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter is not None:
        merged(model, adapter, scale)
    ids = torch.tensor([prompt])
    whole = model.generate(ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    return list(whole[0, len(prompt) :].tolist())


Adapters = tuple[str | None, ...]


def in_company(up: Up, names: Adapters) -> tuple[list[list[int]], list[Adapters]]:
    """Tokens of the prompts, each with its adapter, and the adapters of each forward pass."""
    runner, passes = up.task.engine.runner, []
    run = runner.run

    def noted(rows: Sequence[SequenceChunk]) -> torch.Tensor:
        passes.append(tuple(row.adapter for row in rows))
        return run(rows)

    waiting = [Collected() for _ in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run", noted)
        with Held(up.task.engine):
            for prompt, name, collected in zip(PROMPTS, names, waiting, strict=True):
                params = SamplingParams(max_new_tokens=TOKENS, min_new_tokens=TOKENS, adapter=name)
                up.task.engine.submit(prompt, params, collected)
        return [collected.wait().tokens for collected in waiting], passes


@pytest.mark.parametrize("placed", ["resident", "on disk"])
@pytest.mark.parametrize("name", CASES)
def test_each_row_gets_the_tokens_of_its_own_adapter(
    name: str, placed: str, tmp_path: Path
) -> None:
    config, targets = CASES[name]
    folder = make_checkpoint(tmp_path / "model", name, config=config)
    model = AutoModelForCausalLM.from_pretrained(folder)
    paths = {
        key: write_adapter(tmp_path / key, model, targets, seed=seed, lora_alpha=ALPHA[name])
        for seed, key in enumerate(("one", "two"))
    }
    flags: dict[str, Any] = {"lora_modules": {key: str(path) for key, path in paths.items()}}
    if placed == "on disk":
        flags["device_map"] = blocks_on_disk(folder)
    up = bring_up(folder, **flags)
    try:
        names = ("one", None, "two", "one")
        expected = [
            reference(folder, None if key is None else paths[key], prompt, ALPHA[name] / 4)
            for key, prompt in zip(names, PROMPTS, strict=True)
        ]
        tokens, passes = in_company(up, names)
        assert tokens == expected
        # Once all prompts are computed, all adapters share each forward pass.
        assert sum(Counter(each) == Counter(names) for each in passes) >= TOKENS // 2
        assert in_company(up, ("two",) * 4)[0][2] == expected[2]
        long = [index % 200 + 4 for index in range(70)]
        for key in names[:3]:  # each of the same prompt, whose keys and values adapters change
            own = reference(folder, None if key is None else paths[key], long, ALPHA[name] / 4)
            assert up.tokens(long, max_new_tokens=TOKENS, min_new_tokens=TOKENS, adapter=key) == own
        alone = [reference(folder, None, prompt) for prompt in PROMPTS]
        assert expected != alone, "the adapters change nothing"
    finally:
        up.task.engine.stop()
        up.weights.release()


def test_adapters_are_in_the_plan(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = checkpoints("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    path = write_adapter(tmp_path, model, ("q_proj",), seed=0)
    alone, adapted = planned(folder), planned(folder, lora_modules=f"a={path}")
    tensors = load_file(path / "adapter_model.safetensors").values()
    size = sum(tensor.nbytes for tensor in tensors)
    assert adapted.footprint.activations >= alone.footprint.activations + size


def test_memory_for_adapters_of_later_is_in_the_plan(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama")
    alone, roomy = planned(folder), planned(folder, lora_memory="1MiB")
    assert roomy.footprint.activations >= alone.footprint.activations + 2**20


def planned(folder: Path, **flags: Any) -> startup.Prepared:
    settings = read_settings({"model_dir": str(folder), **flags}, environ={})
    return startup.prepare(settings, startup.open_checkpoint(settings), resources())


def config_of(**changed: Any) -> Any:
    def change(path: Path) -> None:
        file = path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    return change


def tensors_of(change: Any) -> Any:
    def apply(path: Path) -> None:
        tensors = load_file(path / "adapter_model.safetensors")
        save_file(change(tensors), path / "adapter_model.safetensors")

    return apply


def _named(old: str, new: str) -> Any:
    return tensors_of(
        lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}
    )


UNSUITABLE = {
    "no adapter": (lambda path: (path / "adapter_config.json").unlink(), "no adapter_config.json"),
    "no weights": (
        lambda path: (path / "adapter_model.safetensors").unlink(),
        "has no adapter_model.safetensors",
    ),
    "not json": (lambda path: (path / "adapter_config.json").write_text("{"), "is no JSON"),
    "a list": (lambda path: (path / "adapter_config.json").write_text("[]"), "no LoRA"),
    "prompt tuning": (config_of(peft_type="PROMPT_TUNING"), "'PROMPT_TUNING'"),
    "DoRA": (config_of(use_dora=True), "use_dora True"),
    "whole modules": (config_of(modules_to_save=["lm_head"]), "modules_to_save"),
    "biases": (config_of(bias="all"), "bias 'all'"),
    "replicated layers": (config_of(layer_replication=[[0, 2]]), "layer_replication"),
    "a changed base": (config_of(init_lora_weights="pissa"), "changed weights of its base"),
    "a broken pattern": (config_of(alpha_pattern={"(": 1}), "no usable alpha_pattern"),
    "a list of patterns": (config_of(alpha_pattern=["q"]), "no usable alpha_pattern"),
    "no alpha": (config_of(lora_alpha=None), "lora_alpha"),
    "another tensor": (_named("lora_A.weight", "lora_embedding_A"), "lora_embedding_A"),
    "half a pair": (
        tensors_of(lambda tensors: {n: t for n, t in tensors.items() if "lora_A" in n}),
        "no pair of matrices",
    ),
    "another model": (_named("layers.0", "layers.9"), r"trained on org/base\): model.layers.9"),
    "no linear layer": (_named("self_attn.q_proj", "input_layernorm"), "is no linear layer"),
    "another shape": (
        tensors_of(
            lambda tensors: {
                n: t[:, :3].clone() if "lora_A" in n else t for n, t in tensors.items()
            }
        ),
        r"q_proj is 64x64, and not 64x3",
    ),
    "empty": (tensors_of(lambda _: {}), "changes no layer"),
}
"""How an adapter is spoilt, and what the refusal says."""


@pytest.mark.parametrize("case", UNSUITABLE)
def test_an_adapter_that_does_not_suit_is_refused_at_plan(
    case: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    path = write_adapter(tmp_path, model, ("q_proj",), seed=0)
    spoil, sentence = UNSUITABLE[case]
    spoil(path)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        planned(folder, lora_modules=f"a={path}")
    assert str(refused.value).count(". ") == 0


def test_scales_follow_the_config(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama"))
    patterns = {"layers.1.self_attn.q_proj": 16}
    path = write_adapter(tmp_path, model, ("q_proj",), seed=0, alpha_pattern=patterns)
    scales = [layer.scale for layer in read_adapter("a", path).layers.values()]
    assert scales[:3] == [2.0, 4.0, 2.0]
    config_of(use_rslora=True, alpha_pattern={})(path)
    assert {layer.scale for layer in read_adapter("a", path).layers.values()} == {4.0}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("a=/x,b=/y", ["a", "b"]),
        ('{"a": "/x", "b": "/y"}', ["a", "b"]),
        ('{"name": "a", "path": "/x"}', ["a"]),
        ('[{"name": "a", "path": "/x", "base_model_name": "m"}]', ["a"]),
    ],
)
def test_adapters_are_named_as_pairs_or_json(given: str, names: list[str]) -> None:
    assert list(read_settings({"lora_modules": given}, environ={}).lora_modules) == names


@pytest.mark.parametrize("given", ["a", "=x", "a=", "a=/x,a=/y", "a/b=/x", "{", '{"a": 1'])
def test_adapters_that_cannot_be_named_are_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match="lora_modules"):
        read_settings({"lora_modules": given}, environ={})


def test_an_adapter_is_not_named_as_the_model_nor_served_with_encoders(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    for name, setting in (("model", "model_name"), ("big", "model_aliases")):
        taken = rf"'{name}' is the name of the model itself \({setting}\)"
        with pytest.raises(ConfigurationError, match=taken):
            planned(folder, lora_modules=f"{name}={tmp_path}", model_aliases="org/x,big")


def test_a_directory_that_is_an_adapter_says_which_base_it_wants(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    )
    with pytest.raises(CheckpointError, match=r"is a LoRA adapter .*org/base.*lora_modules"):
        planned(tmp_path)


def test_tokens_that_are_no_rows_are_never_adapted(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 5))
    path = write_adapter(tmp_path, model, ("0",), seed=0)
    adapters = LoadedAdapters(model, [read_adapter("a", path)], "cpu")
    with adapters.used_by(["a", None], columns=3):
        assert model(torch.ones(6, 6)).shape == (6, 5)
        with pytest.raises(RuntimeError, match="does not compute rows in their order"):
            model(torch.ones(4, 6))  # some experts' tokens


@pytest.mark.parametrize(
    "pattern", ["(a|a)+", "(a*)*", "a*a*a*", "(?=a)a", r"(a)\1", "a{2,}", "a" * 300]
)
def test_patterns_that_could_take_for_ever_are_refused(pattern: str, tmp_path: Path) -> None:
    path = adapter_of_layer(tmp_path, "a" * 60 + "b", alpha_pattern={pattern: 1})
    with pytest.raises(CheckpointError, match="alpha_pattern that is too complex"):
        read_adapter("a", path)


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "layers.1.q_proj",
        r"model\.layers\.\d+\.q_proj",
        "layers.[0-9]+.(q|v)_proj",
        ".*q_.*",
    ],
)
def test_patterns_as_peft_has_them_are_followed(pattern: str, tmp_path: Path) -> None:
    path = adapter_of_layer(tmp_path, "model.layers.1.q_proj", alpha_pattern={pattern: 6})
    assert read_adapter("a", path).layers["model.layers.1.q_proj"].scale == 3


def test_adapters_are_loaded_and_unloaded_by_several_threads_at_a_time(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(40)))
    shapes = {"A": (2, 8), "B": (8, 2)}
    tensors = {
        f"base_model.model.{layer}.lora_{half}.weight": torch.ones(shape)
        for layer in range(40)
        for half, shape in shapes.items()
    }
    path = written_adapter(tmp_path, tensors)
    loaded = LoadedAdapters(model, (), "cpu")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            jobs = [threads.submit(loaded.load, read_adapter(str(n), path)) for n in range(20)]
            jobs += [threads.submit(loaded.unload, str(n)) for n in range(20) for _ in range(20)]
            for job in jobs:
                job.result()
    finally:
        sys.setswitchinterval(interval)


def adapter_of_layer(folder: Path, layer: str, **config: Any) -> Path:
    halves = {"A": torch.ones(2, 8), "B": torch.ones(8, 2)}
    tensors = {f"base_model.model.{layer}.lora_{half}.weight": halves[half] for half in halves}
    return written_adapter(folder, tensors, **config)


def written_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    save_file(tensors, folder / "adapter_model.safetensors")
    whole = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | config
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    return folder
