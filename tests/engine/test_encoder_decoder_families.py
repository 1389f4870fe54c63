"""Every family of encoder-decoder models: its replies in company and offloaded are `generate`'s."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.lengths import Lengths
from predictor.constraints import serving_notes
from predictor.engine.generation.encoder_decoder_runner import EncoderDecoderRunner
from predictor.engine.generation.encoder_decoder_warmup import open_encoder_decoder_runner
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.sampling_params import as_source
from predictor.profiling.footprint import build_on_meta, measure_footprint
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt
from tests.engine.encoder_decoders import FAMILIES, make_model, save
from tests.serving import blocks_on_disk, bring_up, is_reply

CPU = torch.device("cpu")
NEW = 6
PECULIAR = ("led", "fsmt", "switch", "t5gemma", "t5gemma2", "prophetnet", "bert to gpt2")
CANNOT_JOIN = frozenset({"prophetnet", "nllb-moe"})
"""ProphetNet's decoder reads no mask once it has a cache, and its n-gram streams count positions
for all rows at once. NLLB's router takes the padding of one row for that of others."""


class Kept:
    """A warm-up cache that keeps what it is given."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    def get(self, name: str) -> int | None:
        return self.values.get(name)

    def keep(self, **values: int) -> None:
        self.values |= values


def generated(model: Any, source: list[int]) -> list[int]:
    """The tokens of a decoder, of which none ends the reply."""
    ids = torch.tensor([source])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        min_new_tokens=NEW,
        max_new_tokens=NEW,
    )
    return made[0].tolist()  # type: ignore[no-any-return]


def opened(model: Any) -> tuple[EncoderDecoderRunner, str | None]:
    cache: Any = Kept()
    return open_encoder_decoder_runner(model, CPU, cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_sources_that_come_later_get_the_replies_of_generate(family: str) -> None:
    model = make_model(family)
    end = model.generation_config.eos_token_id
    sources = [[10 + 7 * key + i for i in range(20 + key)] for key in range(3)]
    expected = [generated(model, source) for source in sources]
    runner, reason = opened(model)
    assert reason is None
    apart = EncoderDecoderRunner(model, device=CPU, alone=True)
    apart.piece = 1
    start = expected[0][0]
    lines = {key: [*as_source(source), start] for key, source in enumerate(sources)}
    done = dict.fromkeys(lines, 0)

    def step(*keys: int) -> None:
        chunks = [SequenceChunk(key, done[key], lines[key][done[key] :]) for key in keys]
        logits = runner.run(chunks).clone()
        torch.testing.assert_close(logits, apart.run(chunks), atol=1e-4, rtol=1e-4)
        logits[:, end] = -torch.inf
        for key, token in zip(keys, logits.argmax(dim=-1).tolist(), strict=True):
            done[key] = len(lines[key])
            lines[key].append(token)

    for keys in ((0,), (0,), (1,), (0, 1), (2,), (0, 1, 2), (0, 1, 2), (0, 1, 2)):
        step(*keys)
    has_joined = len({id(batch) for batch in runner.batches.values()}) == 1
    assert has_joined == (family not in CANNOT_JOIN)
    for keys in ((1, 2), (1, 2), (2,)):
        step(*keys)
    for key, source in enumerate(sources):
        made = lines[key][len(source) :]
        assert made[: len(expected[key])] == expected[key][: len(made)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_that_is_computed_again_goes_on_as_it_would_have(family: str) -> None:
    model = make_model(family)
    end = model.generation_config.eos_token_id
    source = list(range(10, 30))
    expected = generated(model, source)
    runner, _ = opened(model)
    logits = runner.run([SequenceChunk(0, 0, (*as_source(source), *expected[:-1]))]).clone()
    logits[:, end] = -torch.inf
    assert logits.argmax().item() == expected[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured_and_streamed_by_block(family: str, tmp_path: Path) -> None:
    config = make_model(family).config
    skeleton = build_on_meta(config, "float32", "text2text_generation")
    footprint = measure_footprint(skeleton, max_model_len=64, prefill_chunk=64, max_batch_size=4)
    assert footprint.probed
    assert footprint.by_block
    checkpoint = Checkpoint(tmp_path, config, "safetensors", None, "text2text_generation")
    notes = serving_notes(checkpoint, skeleton, None, Lengths(64))
    is_apart = any("run in forward passes of their own" in note for note in notes)
    assert is_apart == (family in CANNOT_JOIN)  # as the start finds out, see above


def combinations() -> Iterator[pytest.ParameterSet]:
    """Every family and tier; without ``--full-grid`` the peculiar families, each in one tier."""
    tiers = ("cpu", "half", "disk")
    for family, tier in itertools.product(FAMILIES, tiers):
        runs = family in PECULIAR and tier == tiers[PECULIAR.index(family) % len(tiers)]
        yield pytest.param(family, tier, marks=() if runs else pytest.mark.full_grid)


@pytest.mark.parametrize(("family", "tier"), list(combinations()))
def test_replies_of_the_server_are_those_of_generate(
    family: str, tier: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(family, tmp_path / "model")
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    placed = blocks_on_disk(folder, "text2text_generation") if tier == "half" else tier
    caplog.set_level(logging.INFO)
    up = bring_up(
        folder, max_model_len=64, device_map=placed, offload_folder=str(tmp_path / "offload")
    )
    assert "one at a time" not in caplog.text
    texts = ("a long text to begin with", "a", "translate this", "z" * 30)
    parameters = GenerationParameters(max_new_tokens=NEW, temperature=0.0, min_new_tokens=NEW)
    for company in (texts, *((text,) for text in texts[:2])):
        request = GenerationRequest(tuple(Prompt(text, parameters) for text in company))
        replies = asyncio.run(up.task.prepare(request).complete())
        for text, reply in zip(company, replies, strict=True):
            ids = up.task.tokenizer(text).input_ids
            expected = generated(model, ids)[1:]
            whole = up.task.tokenizer.decode(expected, skip_special_tokens=True)
            assert is_reply(reply.text, whole)
            assert reply.completion_tokens == NEW
