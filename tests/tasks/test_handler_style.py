"""Replies with the style of TorchServe's handler, held against the handler's own steps.

`handler_steps` is what `custom_handler.py` does between a request's text and its answer, with the
calls that transformers 5 has (`encode_plus` is calling the tokenizer, `pad_to_max_length` is
`padding="max_length", truncation=True`). Where it was right, replies are the same. Otherwise:

- It dropped the attention mask. `generate` infers it where padding and end differ, as for BLOOM;
  where they are one token, padding is read as text.
- It padded every prompt to `max_length`, which changes no reply and costs time; nothing is padded.
- It sampled without a seed from one generator for the batch; here each request has its own, so that
  replies to one seed repeat, and follow the same distribution.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from predictor.protocol.response_style import handler_style
from predictor.tasks.answers import Completion
from predictor.tasks.parameters import parse_parameters
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt
from tests.conftest import Checkpoints
from tests.serving import Up, bring_up

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
MAX_LENGTH = 24
DRAWS = 1500
PROMPTS = {
    "short": "Today the weather is really nice and I am planning on",
    "one word": "Tom",
    "as long as may be": "Tom and Anna " * 40,
}


class Original:
    """The model as the handler held it."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def handler_steps(self, text: str, **sampling: Any) -> str:
        inputs = self.tokenizer(
            text,
            max_length=MAX_LENGTH,
            padding="max_length",
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        outputs = self.model.generate(inputs.input_ids, max_new_tokens=MAX_LENGTH, **sampling)
        reply: str = self.tokenizer.batch_decode(outputs, skip_special_tokens=True)[0]
        return reply

    @torch.inference_mode()
    def first_tokens(self, text: str) -> torch.Tensor:
        """Probabilities of the first new token, as the handler's sampling gave them."""
        ids = self.tokenizer(
            text, max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        logits = self.model(ids).logits[:, -1]
        warpers = LogitsProcessorList([TopKLogitsWarper(60), TopPLogitsWarper(0.95)])
        return torch.softmax(warpers(ids, logits), dim=-1)[0]


@pytest.fixture(scope="module")
def original() -> Original:
    return Original(DEMO)


@pytest.fixture(scope="module")
def up() -> Up:
    return bring_up(DEMO, dtype="float32", max_model_len=2 * MAX_LENGTH)


def ask(up: Up, *texts: str, **values: Any) -> tuple[Completion, ...]:
    parameters = parse_parameters(values, defaults=handler_style(MAX_LENGTH).defaults)
    request = GenerationRequest(tuple(Prompt(text, parameters) for text in texts))
    return asyncio.run(up.task.prepare(request).complete())


@pytest.mark.parametrize("text", PROMPTS.values(), ids=PROMPTS.keys())
def test_a_greedy_reply_is_the_handlers(up: Up, original: Original, text: str) -> None:
    (result,) = ask(up, text, temperature=0)
    assert result.text == original.handler_steps(text, do_sample=False)
    assert result.completion_tokens <= MAX_LENGTH


def test_replies_in_company_are_the_handlers_too(up: Up, original: Original) -> None:
    result = ask(up, *PROMPTS.values(), temperature=0)
    expected = [original.handler_steps(text, do_sample=False) for text in PROMPTS.values()]
    assert [completion.text for completion in result] == expected


def test_a_longer_prompt_keeps_its_beginning(up: Up, original: Original) -> None:
    text = PROMPTS["as long as may be"]
    (result,) = ask(up, text, temperature=0)
    beginning = original.tokenizer(text).input_ids[:MAX_LENGTH]
    assert result.prompt_tokens == MAX_LENGTH
    assert result.text.startswith(original.tokenizer.decode(beginning))


def test_a_seeded_reply_repeats_and_others_differ(up: Up) -> None:
    text = PROMPTS["short"]
    once, again, other = (ask(up, text, seed=seed)[0].text for seed in (1, 1, 2))
    assert once == again != other
    assert once.startswith(text)


def test_seeded_first_tokens_are_spread_as_the_handlers(checkpoints: Checkpoints) -> None:
    """With random weights, whose tokens are nearly as likely as one another."""
    folder = checkpoints("bloom")
    expected = Original(folder).first_tokens(PROMPTS["short"]).tolist()
    assert sum(probability > 0 for probability in expected) > 20
    task = bring_up(folder, max_model_len=128).task
    style = handler_style(MAX_LENGTH).defaults
    prompts = (
        Prompt(PROMPTS["short"], replace(style, seed=seed, max_new_tokens=1, logprobs=0))
        for seed in range(DRAWS)
    )
    completions = asyncio.run(task.prepare(GenerationRequest(tuple(prompts))).complete())
    counts = Counter(completion.tokens[0].id for completion in completions)
    for token, probability in enumerate(expected):
        spread = (DRAWS * probability * (1 - probability)) ** 0.5
        assert abs(counts[token] - DRAWS * probability) <= 5 * spread + 1e-9, token


def test_padding_that_is_the_end_token_is_no_part_of_the_prompt(checkpoints: Checkpoints) -> None:
    """`generate` cannot tell it from text then, and the handler gave it no mask."""
    folder = checkpoints("gpt2")
    model, tokenizer = (original := Original(folder)).model, original.tokenizer
    ids = tokenizer("Tom and Anna", return_tensors="pt").input_ids
    padding = torch.full((1, MAX_LENGTH - ids.shape[1]), tokenizer.eos_token_id)
    alone, padded = (
        torch.log_softmax(model(given).logits[0, -1].detach(), dim=-1)
        for given in (ids, torch.cat([padding, ids], dim=1))
    )
    prompt = Prompt(array("i", ids[0].tolist()), GenerationParameters(max_new_tokens=1, logprobs=0))
    prepared = bring_up(folder).task.prepare(GenerationRequest((prompt,)))
    (token,) = asyncio.run(prepared.complete())[0].tokens
    assert token.logprob == pytest.approx(float(alone[token.id]), abs=1e-3)
    assert token.logprob != pytest.approx(float(padded[token.id]), abs=1e-2)
