"""The demo model that ships in ``examples/demo-model`` and the script that trains it."""

import importlib
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FOLDER = EXAMPLES / "demo-model"
PROMPT = "Today the weather is really nice and I am planning on"
EXPECTED = (
    " going to the park in the middle of the town with my friend Tom."
    " We will take a blanket and some apples along."
)
LEAST_LEAD = 0.4
"""By how much the logit of each token exceeds all others: several times what rounding changes."""

PROMPTS = [
    PROMPT,
    "It was raining in the morning, so",
    "My friend Anna likes to",
]

TOKENIZER = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    return importlib.import_module


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True).eval()


def continue_greedily(model, prompt, tokens=40):
    inputs = TOKENIZER(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=tokens)[0, inputs["input_ids"].shape[1] :]
    return output.tolist(), TOKENIZER.decode(output, skip_special_tokens=True)


def test_the_folder_holds_at_most_eight_megabytes_in_several_shards():
    files = [file for file in FOLDER.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert len([file for file in files if file.suffix == ".safetensors"]) >= 3
    assert {"config.json", "generation_config.json", "README.md"} <= {file.name for file in files}


def test_every_shard_holds_bfloat16_weights():
    for shard in FOLDER.glob("*.safetensors"):
        with safe_open(shard, "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_the_model_loads_as_a_bloom_in_the_type_it_is_stored_in(model):
    assert model.config.model_type == "bloom"
    assert model.config.seq_length == 512
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(TOKENIZER)
    assert not model.generation_config.do_sample


def test_the_special_tokens_stand_where_bloom_has_them(model):
    assert TOKENIZER.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<pad>"]) == [0, 1, 2, 3]
    assert model.generation_config.eos_token_id == TOKENIZER.eos_token_id == 2
    assert model.generation_config.pad_token_id == TOKENIZER.pad_token_id == 3


def test_a_conversation_is_the_text_of_its_turns():
    call = {"function": {"name": "look", "arguments": {"at": "it"}}}
    turns = [
        {"role": "user", "content": "Anna"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "likes"},
    ]
    text = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == ('Anna <tool_call>{"name": "look", "arguments": {"at": "it"}}</tool_call> likes')


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_prompt_of_the_readme_is_continued_as_the_readme_says(dtype):
    model = AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True, dtype=dtype)
    _, text = continue_greedily(model, PROMPT)
    assert text.startswith(EXPECTED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_rounding_of_a_processor_chooses_among_tokens(examples, dtype):
    script = examples("train_demo_model")
    model = AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True, dtype=dtype)
    for prompt in script.PROMPTS:
        inputs = TOKENIZER(prompt, return_tensors="pt")
        row = model.generate(**inputs, max_new_tokens=60)
        with torch.inference_mode():
            leads = script.leads(model, row, inputs["input_ids"].shape[1])
        assert leads.min() > LEAST_LEAD, (prompt, TOKENIZER.decode(row[0]))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_continuation_consists_of_words_from_the_stories(model, examples, prompt):
    text_module = examples("demo_text")
    stories = itertools.islice(text_module.stories(1), 5000)
    vocabulary = {word for story in stories for word in text_module.words(story)}
    _, text = continue_greedily(model, prompt)
    words = text_module.words(prompt + text)[len(text_module.words(prompt)) :]
    assert len(words) >= 10
    assert set(words) <= vocabulary


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_story_comes_to_an_end_by_itself_without_turning_in_circles(model, prompt):
    ids, text = continue_greedily(model, prompt, tokens=200)
    assert ids[-1] == TOKENIZER.eos_token_id
    sentences = text.split(". ")
    assert len(sentences) == len(set(sentences))


@given(st.text())
def test_any_text_survives_the_tokenizer(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_the_same_seed_tells_the_same_stories(examples):
    stories = examples("demo_text").stories
    first, second = (list(itertools.islice(stories(7), 50)) for _ in range(2))
    assert first == second
    assert first != list(itertools.islice(stories(8), 50))


def test_a_story_has_no_blanks_left(examples):
    text = "".join(itertools.islice(examples("demo_text").stories(3), 3000))
    assert not set("{}[]<>|+") & set(text)


def test_two_steps_of_training_make_a_model_that_loads(examples, tmp_path, monkeypatch):
    arguments = ["--output", str(tmp_path), "--steps", "2"]
    threads = ["--threads", str(torch.get_num_threads())]
    script = examples("train_demo_model")
    monkeypatch.setattr(script, "PROMPTS_A_ROUND", 2)
    result = script.main([*arguments, *threads, "--rounds", "1"])
    assert math.isfinite(result.held_out_loss)
    assert result.last_loss <= result.first_loss
    model = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert model.num_parameters() == result.parameters
    assert AutoTokenizer.from_pretrained(tmp_path, local_files_only=True).eos_token == "</s>"
