"""The keys of a generation config: followed as transformers does, named, or refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from predictor.errors import CheckpointError, RequestError
from predictor.tasks.generation_config import (
    Defaults,
    check_generation_config,
    end_tokens,
    ignored_keys,
)
from predictor.tasks.request import (
    Conversation,
    GenerationParameters,
    GenerationRequest,
    Message,
    Prompt,
)
from tests.checkpoints import byte_tokenizer, make_checkpoint, write_over
from tests.serving import bring_up, is_reply

PROMPT = "abcabcab"


def write(folder: Path, **values: Any) -> Path:
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.7"),
        ("temperature", -1),
        ("temperature", True),
        ("do_sample", "yes"),
        ("do_sample", 1),
        ("top_p", 1.5),
        ("top_p", [0.5]),
        ("top_k", -2),
        ("top_k", 5.5),
        ("min_p", 2),
        ("min_p", "0.3"),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("max_new_tokens", "12"),
        ("max_length", "12"),
        ("min_length", -1),
        ("min_new_tokens", 1.5),
        ("no_repeat_ngram_size", "3"),
        ("suppress_tokens", ["a"]),
        ("suppress_tokens", 5),
        ("begin_suppress_tokens", 5),
        ("begin_suppress_tokens", {"a": 1}),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [2, "</s>"]),
        ("forced_bos_token_id", "fr"),
        ("decoder_start_token_id", -2),
        ("decoder_start_token_id", [2, 3]),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=name) as raised:
        check_generation_config(write(tmp_path, **{name: value}), has_encoder=True)
    assert raised.value.exit_code == 78


@pytest.mark.parametrize("text", ["{", "[]", '{"early_stopping": 5}'])
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        check_generation_config(tmp_path, has_encoder=False)


def test_a_wrong_token_in_an_old_config_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": "</s>"}')
    with pytest.raises(CheckpointError, match=r"config\.json: eos_token_id must be an integer"):
        check_generation_config(tmp_path, has_encoder=False)


@pytest.mark.parametrize(
    "values",
    [{"max_length": -1}, {"forced_bos_token_id": -1}, {"decoder_start_token_id": [2, 3]}],
)
def test_keys_for_encoders_refuse_no_other_model(tmp_path: Path, values: dict[str, Any]) -> None:
    check_generation_config(write(tmp_path, **values), has_encoder=False)
    assert Defaults.of(GenerationConfig(**values), None) == Defaults()


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("top_k", -1, 0),
        ("top_k", 50.0, 50),
        ("max_new_tokens", 20.0, 20),
        ("min_new_tokens", 3.0, 3),
        ("no_repeat_ngram_size", 2.0, 2),
    ],
)
def test_other_spellings_of_a_number_are_taken(
    tmp_path: Path, name: str, value: float, default: int
) -> None:
    check_generation_config(write(tmp_path, **{name: value}), has_encoder=False)
    taken = getattr(Defaults.of(GenerationConfig(**{name: value}), None), name)
    assert (type(taken), taken) == (int, default)


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", [1, 2]), ("temperature", "warm"), ("top_p", {"a": 1}), ("min_length", -1)],
)
def test_a_models_own_keys_in_its_config_are_no_generation_config(
    tmp_path: Path, name: str, value: Any
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", name: value}))
    check_generation_config(tmp_path, has_encoder=False)
    config = GenerationConfig(**{name: value})
    assert Defaults.of(config, None) == Defaults()
    assert ignored_keys(config, has_prefix=False) == [name]


def test_a_wrong_value_is_refused_before_loading(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "wrong", "llama")
    write_over(folder, do_sample=True, temperature="0.7")
    with pytest.raises(CheckpointError, match="temperature must be a number, not a string"):
        bring_up(folder)


@pytest.mark.parametrize(
    ("values", "temperature", "sampling_temperature"),
    [
        ({}, 0.0, 1.0),
        ({"do_sample": True}, 1.0, 1.0),
        ({"do_sample": True, "temperature": 0.0}, 0.0, 0.0),
        ({"do_sample": True, "temperature": 1e-40}, 0.0, 0.0),
        ({"do_sample": True, "temperature": 1e-6}, 1e-6, 1e-6),
        ({"do_sample": False, "temperature": 0.0}, 0.0, 1.0),
        ({"do_sample": False, "temperature": 0.6}, 0.0, 0.6),
    ],
)
def test_sampling_without_a_temperature_is_greedy(
    values: dict[str, Any], temperature: float, sampling_temperature: float
) -> None:
    defaults = Defaults.of(GenerationConfig(**values), None)
    assert (defaults.temperature, defaults.sampling_temperature) == (
        temperature,
        sampling_temperature,
    )


def test_keys_that_are_not_followed_are_named() -> None:
    config = GenerationConfig(
        num_beams=4, typical_p=0.5, max_length=99, min_p=0.1, of_the_models_own=3, do_sample=True
    )
    assert ignored_keys(config, has_prefix=False) == [
        *("max_length", "num_beams", "of_the_models_own", "typical_p")
    ]
    assert "max_length" not in ignored_keys(config, has_prefix=True)
    assert not ignored_keys(GenerationConfig(bos_token_id=1, use_cache=True), has_prefix=False)
    assert not ignored_keys(GenerationConfig(num_beams=1, typical_p=1.0), has_prefix=False)


def test_a_decoder_counts_its_prefix_in_the_configs_lengths() -> None:
    config = GenerationConfig(max_length=142, min_length=56)
    defaults = Defaults.of(config, None, prefix=2)
    assert (defaults.max_new_tokens, defaults.min_length) == (140, 56)
    assert Defaults.of(config, None).max_new_tokens == 64
    assert Defaults.of(GenerationConfig(min_length=9, min_new_tokens=3), None).min_length == 0


def test_the_end_tokens_are_those_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"eos_token_id": [7, 8], "text_config": {"eos_token_id": 9}}'
    )
    assert end_tokens(GenerationConfig(eos_token_id=5), tmp_path) == {5, 7, 8, 9}
    (tmp_path / "config.json").write_text('{"eos_token_id": null}')
    assert end_tokens(GenerationConfig(eos_token_id=[5, 6]), tmp_path) == {5, 6}


@pytest.mark.parametrize(
    "values",
    [
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 9},
        {"min_length": 15},
        {"suppress_tokens": list(range(100))},
        {"begin_suppress_tokens": list(range(200))},
    ],
)
def test_a_key_is_followed_as_by_generate(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = make_checkpoint(tmp_path / "followed", "llama")
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(PROMPT).input_ids])

    def generated(**more: Any) -> list[int]:
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **more)
        return made[0, ids.shape[1] :].tolist()

    is_ended = "min_length" in values or "min_new_tokens" in values
    end = generated(max_new_tokens=40)[3] if is_ended else 2
    write_over(folder, eos_token_id=end, **values)
    expected = generated(max_new_tokens=40, eos_token_id=end, **values)
    assert expected != generated(max_new_tokens=40, eos_token_id=end)
    up = bring_up(folder)
    request = GenerationRequest((Prompt(PROMPT, GenerationParameters(max_new_tokens=40)),))
    (reply,) = asyncio.run(up.task.prepare(request).complete())
    whole = up.task.tokenizer.decode(expected, skip_special_tokens=True)
    assert is_reply(reply.text, whole)
    assert reply.completion_tokens == len(expected)


def test_the_tokenizers_end_ends_a_reply(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "ended", "llama")
    for file in ("config.json", "generation_config.json"):
        document = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**document, "eos_token_id": None}))
    up = bring_up(folder)
    free = up.tokens(up.task.tokenizer(PROMPT).input_ids, max_new_tokens=6)
    up.task.tokenizer.eos_token = up.task.tokenizer.convert_ids_to_tokens(free[2])
    up.task.tokenizer.save_pretrained(folder)
    again = bring_up(folder)
    request = GenerationRequest((Prompt(PROMPT, GenerationParameters(max_new_tokens=6)),))
    (reply,) = asyncio.run(again.task.prepare(request).complete())
    assert (reply.completion_tokens, reply.finish_reason) == (free.index(free[2]) + 1, "stop")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ messages[9]['content'] }}", "has no element 9"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ 1 // 0 }}", "zero"),
        ("{% for", "unexpected|Expected|expected"),
        ("{{ messages | nothing }}", "nothing"),
    ],
)
def test_a_chat_template_that_fails_is_a_request_error(template: str, reason: str) -> None:
    from predictor.tasks.generation import TextGeneration

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    task = TextGeneration(tokenizer, None, Defaults(), max_model_len=99, vocabulary=300)  # type: ignore[arg-type]
    chat = Prompt(Conversation((Message("user", "hello"),)), GenerationParameters())
    with pytest.raises(RequestError, match=reason):
        task.prepare(GenerationRequest((chat,)))
