"""Encoder-decoder models: replies in company, offloaded, after failures, as alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    EncoderDecoderConfig,
    GPT2Config,
    LEDConfig,
    PreTrainedConfig,
    T5Config,
    T5GemmaConfig,
)
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

from predictor.checkpoint.checkpoint import open_directory
from predictor.checkpoint.lengths import default_length, reply_positions, source_positions
from predictor.engine.generation.encoder_decoder_runner import EncoderDecoderRunner
from predictor.engine.generation.encoder_decoder_warmup import (
    check_encoder_decoder_batch_invariance,
    check_joined_batches,
    run_two_tokens,
)
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.sampling_params import as_source
from predictor.errors import ConfigurationError, PromptTooLong, RequestError
from predictor.profiling.footprint import build_on_meta, measure_footprint
from predictor.tasks.answers import Completion
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt
from tests.checkpoints import write_over
from tests.encoding.checkpoints import ENCODER_DECODERS, VOCABULARY, make_encoder_decoder
from tests.serving import Up, blocks_on_disk, bring_up, metric

TEXTS = ("a long text to begin with", "a", "translate this", "hello", "what is it?", "z" * 40)
CPU = torch.device("cpu")

Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    root = tmp_path_factory.mktemp("paired")

    def get(architecture: str) -> Path:
        folder = root / architecture
        return folder if folder.exists() else make_encoder_decoder(folder, architecture)

    return get


def alone(folder: Path, *texts: str, **params: Any) -> list[str]:
    """What transformers makes of each text by itself."""
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    replies = []
    for text in texts:
        ids = torch.tensor([tokenizer(text).input_ids])
        made = model.generate(input_ids=ids, do_sample=False, num_beams=1, **params)
        replies.append(tokenizer.decode(made[0], skip_special_tokens=True))
    return replies


def ask(up: Up, *texts: str, max_new_tokens: int | None = 20, **params: Any) -> list[Completion]:
    parameters = GenerationParameters(max_new_tokens=max_new_tokens, temperature=0.0, **params)
    request = GenerationRequest(tuple(Prompt(text, parameters) for text in texts))
    return list(asyncio.run(up.task.prepare(request).complete()))


@pytest.mark.parametrize("tier", ["resident", "half", "disk"])
@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_replies_in_a_batch_are_those_of_generate(make: Make, architecture: str, tier: str) -> None:
    folder = make(architecture)
    expected = alone(folder, *TEXTS, max_new_tokens=20)
    assert len(set(expected)) > 3
    half = blocks_on_disk(folder, "text2text_generation")
    placed = {"resident": "cpu", "half": half, "disk": "disk"}[tier]
    up = bring_up(folder, max_model_len=128, device_map=placed)
    streams = {"resident": None, "half": 4, "disk": 7}[tier]
    assert streams is None or len(up.weights.streaming.loader.blocks) == streams  # type: ignore[union-attr]
    replies = ask(up, *TEXTS)
    assert [one.text for one in replies] == expected
    assert [one.prompt_tokens for one in replies] == [len(text) + 2 for text in TEXTS]
    assert up.prepared.checkpoint.task == "text2text_generation"


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_those_that_are_put_back_and_those_that_end_early_disturb_nobody(
    make: Make, architecture: str
) -> None:
    folder = make(architecture)
    expected = alone(folder, *TEXTS * 2, max_new_tokens=30)
    up = bring_up(folder, max_model_len=80, max_concurrency=2)
    parameters = [
        GenerationParameters(max_new_tokens=30 if index % 3 else 4, temperature=0.0)
        for index in range(len(expected))
    ]
    prompts = [Prompt(text, own) for text, own in zip(TEXTS * 2, parameters, strict=True)]
    replies = asyncio.run(up.task.prepare(GenerationRequest(tuple(prompts))).complete())
    for index, (one, whole) in enumerate(zip(replies, expected, strict=True)):
        assert one.text == whole if index % 3 else whole.startswith(one.text.rstrip("\ufffd"))
    assert metric("predictor_preemptions_total", "model") > 0


def test_only_the_reply_is_penalised(make: Make) -> None:
    folder = make("t5")
    params = {"repetition_penalty": 1.8}
    expected = alone(folder, *TEXTS, max_new_tokens=20, **params)
    up = bring_up(folder, max_model_len=128)
    assert [one.text for one in ask(up, *TEXTS, **params)] == expected
    assert expected != alone(folder, *TEXTS, max_new_tokens=20)


def test_ignored_keys_of_a_generation_config_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_encoder_decoder(tmp_path / "ignored", "bart", num_beams=4, length_penalty=2.0)
    bring_up(folder)
    assert "these keys are ignored: length_penalty, num_beams" in caplog.text
    caplog.clear()
    bring_up(make_encoder_decoder(tmp_path / "plain", "bart"))
    assert "are ignored" not in caplog.text


def test_a_decoder_begins_with_what_is_forced_by_the_config_or_a_request(tmp_path: Path) -> None:
    folder = make_encoder_decoder(tmp_path / "forced", "bart", forced_bos_token_id=1)
    up = bring_up(folder, max_model_len=128)
    expected = {}
    for token in (1, 9):
        expected[token] = alone(folder, *TEXTS, max_new_tokens=21, forced_bos_token_id=token)
    assert expected[1] != expected[9]
    assert [one.text for one in ask(up, *TEXTS)] == expected[1]
    # The text of a reply begins after the token that is forced.
    word = up.task.tokenizer.convert_ids_to_tokens(9)
    for forced in (9, word):
        replies = ask(up, *TEXTS, forced_bos_token_id=forced)
        assert [f"{word}{one.text}" for one in replies] == expected[9]
    for forced in (VOCABULARY, "xx_XX"):
        with pytest.raises(RequestError, match="forced_bos_token_id"):
            ask(up, *TEXTS, forced_bos_token_id=forced)


@pytest.mark.parametrize(
    "config",
    [{"no_repeat_ngram_size": 2}, {"min_length": 20}, {"max_length": 9}, {"min_new_tokens": 20}],
)
def test_a_generation_config_is_followed(tmp_path: Path, config: dict[str, int]) -> None:
    folder = make_encoder_decoder(tmp_path / "followed", "bart")
    end = list(range(9, 70)) if "min" in next(iter(config)) else [2]
    limit = None if "max_length" in config else 24
    expected = alone(folder, *TEXTS, eos_token_id=end, max_new_tokens=limit, **config)
    assert expected != alone(folder, *TEXTS, eos_token_id=end, max_new_tokens=24)
    write_over(folder, eos_token_id=end, **config)
    up = bring_up(folder)
    assert [one.text for one in ask(up, *TEXTS, max_new_tokens=limit)] == expected


def test_a_source_and_its_reply_have_lengths_of_their_own(make: Make) -> None:
    up = bring_up(make("t5"), max_model_len=32)
    (reply,) = ask(up, "x" * 30, max_new_tokens=31)  # and what the decoder begins with
    assert reply.completion_tokens == 31
    with pytest.raises(PromptTooLong, match="exceeds the 31 tokens"):
        ask(up, "x" * 20, max_new_tokens=32)
    with pytest.raises(PromptTooLong, match="takes at most 32"):
        ask(up, "x" * 31)


def test_an_encoder_and_a_decoder_take_all_of_their_positions(tmp_path: Path) -> None:
    folder = make_encoder_decoder(tmp_path / "short", "bart", max_position_embeddings=64)
    text, new = "z" * 62, 63
    expected = alone(folder, text, max_new_tokens=new, min_new_tokens=new)
    write_over(folder, min_new_tokens=new)
    up = bring_up(folder, max_model_len=None)
    (reply,) = ask(up, text, max_new_tokens=new)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == (expected[0], 64, new)
    with pytest.raises(ConfigurationError, match="longer than the 64 positions"):
        bring_up(folder, max_model_len=65)


@pytest.mark.parametrize(
    ("config", "source", "reply"),
    [
        (T5Config(), None, None),
        (T5Config(n_positions=512), None, None),
        (BartConfig(max_position_embeddings=64), 64, 64),
        (LEDConfig(), 16384, 1024),
        (
            EncoderDecoderConfig.from_encoder_decoder_configs(
                BertConfig(max_position_embeddings=300), GPT2Config(n_positions=200)
            ),
            300,
            200,
        ),
    ],
)
def test_the_positions_of_a_config(
    config: PreTrainedConfig, source: int | None, reply: int | None
) -> None:
    assert (source_positions(config), reply_positions(config)) == (source, reply)


def test_the_default_of_a_length_without_a_limit() -> None:
    assert default_length(T5Config(n_positions=512), None) == 512
    assert default_length(T5Config(), None) == 2048
    assert default_length(T5Config(), 16384) == 8192


class Frail:
    """A model that fails once, amid its decoder, after so many passes that do not."""

    def __init__(self, model: Any) -> None:
        self.fails_after = -1
        model.get_decoder().block[1].register_forward_pre_hook(self._fail)

    def _fail(self, *_: Any) -> None:
        self.fails_after -= 1
        if self.fails_after == -1:
            raise RuntimeError("a secret")


def rows(*sequences: tuple[int, ...], start: int = 0) -> list[SequenceChunk]:
    return [SequenceChunk(key, start, tokens) for key, tokens in enumerate(sequences)]


def test_a_pass_that_failed_halfway_is_run_again_as_if_it_had_not(make: Make) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make("t5")).eval()
    frail, runner = Frail(model), EncoderDecoderRunner(model, device=CPU)
    begun = rows((*as_source([40, 41, 42]), 3), (*as_source([50, 51, 52]), 3))
    runner.run(begun)
    next_ones = rows((7,), (8,), start=4)
    expected = runner.run(next_ones)
    runner.run(begun)
    frail.fails_after = 0
    with pytest.raises(RuntimeError):
        runner.run(next_ones)
    halves = [runner.run(next_ones[:1]), runner.run(next_ones[1:])]
    torch.testing.assert_close(torch.cat(halves), expected, atol=1e-4, rtol=0)


def test_so_is_a_batch_beside_one_that_failed(make: Make) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make("t5")).eval()
    frail, runner = Frail(model), EncoderDecoderRunner(model, device=CPU)
    runner.most_padding = None
    begun = rows((*as_source([40, 41, 42]), 3), (*as_source([50, 51]), 3), (*as_source([60]), 3))

    def begin() -> None:
        runner.run(begun[:2])
        runner.run(begun[2:])

    begin()
    next_ones = [SequenceChunk(row.key, row.end, (7,)) for row in begun]
    expected = runner.run(next_ones)
    begin()
    frail.fails_after = 1  # the second batch's forward pass
    with pytest.raises(RuntimeError):
        runner.run(next_ones)
    halves = [runner.run(next_ones[:1]), runner.run(next_ones[1:])]
    torch.testing.assert_close(torch.cat(halves), expected, atol=1e-4, rtol=0)
    after = [SequenceChunk(row.key, row.end + 1, (8,)) for row in begun]
    again = runner.run(after)
    begin()
    runner.run(next_ones)
    torch.testing.assert_close(again, runner.run(after), atol=1e-4, rtol=0)


def test_the_order_of_rows_moves_nothing(make: Make) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make("t5")).eval()
    runner = EncoderDecoderRunner(model, device=CPU)
    begun = rows(*((*as_source([40 + n, 41, 42]), 3) for n in range(3)))
    runner.run(begun)
    next_ones = [SequenceChunk(row.key, row.end, (7 + row.key,)) for row in begun]
    expected, before = runner.run(next_ones), runner.batches[0].cache
    logits = runner.run(next_ones[::-1])
    torch.testing.assert_close(logits.flip(0), expected, atol=1e-4, rtol=0)
    assert runner.batches[0].cache is before


def test_a_sequence_that_ends_leaves_its_batch_before_others_begin(make: Make) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make("t5")).eval()
    runner = EncoderDecoderRunner(model, device=CPU)
    begun = rows(*((*as_source([40] * (9 + n)), 3) for n in range(3)))
    runner.run(begun)
    runner.release(2)
    runner.run([SequenceChunk(3, 0, (*as_source([50, 51]), 3))])
    assert runner.batches[0].keys == [0, 1]
    assert runner.batches[0].states.shape[:2] == (2, 10)
    runner.release(0)
    runner.release(1)
    runner.run([SequenceChunk(3, 3, (7,))])
    assert list(runner.batches) == [3]


def test_sources_of_other_lengths_are_read_apart(make: Make) -> None:
    """Their padding would stay with them."""
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make("t5")).eval()
    runner = EncoderDecoderRunner(model, device=CPU)
    runner.run(rows(*((*as_source([40] * count), 3) for count in (4, 40, 5, 41))))
    assert runner.batches[0] is runner.batches[2]
    assert runner.batches[1] is runner.batches[3]
    assert runner.batches[0] is not runner.batches[1]


def test_a_reply_that_is_computed_again_is_fed_in_pieces(make: Make) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make("t5")).eval()
    runner = EncoderDecoderRunner(model, device=CPU)
    line = (*as_source([40, 41, 42]), *range(3, 53))
    for count in range(4, len(line) + 1):
        start = 0 if count == 4 else count - 1
        expected = runner.run([SequenceChunk(0, start, line[start:count])])
    logits = runner.run([SequenceChunk(0, 0, line)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert runner.batches[0].length == 50


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_sources_that_come_later_join(make: Make, architecture: str) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make(architecture)).eval()
    joining, apart = (EncoderDecoderRunner(model, device=CPU) for _ in range(2))
    apart.most_padding = None
    assert check_joined_batches(joining, model) is None
    lines = {key: [*as_source([40 + key] * 40), 3] for key in range(3)}
    done = dict.fromkeys(lines, 0)

    def step(*keys: int) -> None:
        chunks = [SequenceChunk(key, done[key], lines[key][done[key] :]) for key in keys]
        logits = [runner.run(chunks) for runner in (joining, apart)]
        torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
        for key, token in zip(keys, logits[0].argmax(dim=-1).tolist(), strict=True):
            done[key] = len(lines[key])
            lines[key].append(token)

    for keys in ((0,), (0,), (0,), (1,), (0, 1), (0, 1), (2,), (0, 1, 2), (0, 1, 2)):
        step(*keys)
    assert len({id(batch) for batch in joining.batches.values()}) == 1
    assert joining.batches[0].pads == [0, 2, 4]
    assert len({id(batch) for batch in apart.batches.values()}) == 3
    joining.release(0)
    apart.release(0)
    step(1, 2)
    assert joining.batches[1].pads == [0, 2]
    step(2)  # alone, and later with the other again
    step(1, 2)


def test_a_sequence_joins_only_if_that_takes_little_padding(make: Make) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make("t5")).eval()
    runner = EncoderDecoderRunner(model, device=CPU)
    long, short = [SequenceChunk(key, 0, (*as_source([40] * n), 3)) for key, n in ((0, 90), (1, 8))]
    runner.run([long])
    runner.run([short])
    runner.run([SequenceChunk(row.key, row.end, (7,)) for row in (long, short)])
    assert runner.batches[0] is not runner.batches[1]


def test_a_model_that_cannot_join_sequences_is_found_out(make: Make) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make("t5")).eval()
    forward = model.forward

    def blind(decoder_attention_mask: Any = None, **given: Any) -> Any:
        return forward(**given)

    model.forward = blind
    reason = check_joined_batches(EncoderDecoderRunner(model, device=CPU), model)
    assert reason is not None
    assert "other logits than alone" in reason


def test_a_model_that_cannot_go_on_is_not_ready(make: Make) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make("t5")).eval()
    forward = model.forward

    def once(encoder_outputs: Any = None, **given: Any) -> Any:
        if encoder_outputs is not None:
            raise AttributeError("router_logits")
        return forward(**given)

    model.forward = once
    assert "AttributeError" in (
        check_encoder_decoder_batch_invariance(EncoderDecoderRunner(model, device=CPU), model) or ""
    )
    with pytest.raises(AttributeError):
        run_two_tokens(EncoderDecoderRunner(model, device=CPU, alone=True), model)


def test_a_sequence_whose_cache_is_gone_does_not_continue(make: Make) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make("t5")).eval()
    runner = EncoderDecoderRunner(model, device=CPU)
    runner.run(rows((*as_source([40, 41]), 3)))
    runner.release(0)
    with pytest.raises(RuntimeError, match="cache is gone"):
        runner.run(rows((7,), start=3))


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_a_model_that_sees_padding_is_found_out(make: Make, architecture: str) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make(architecture)).eval()
    assert (
        check_encoder_decoder_batch_invariance(EncoderDecoderRunner(model, device=CPU), model)
        is None
    )
    forward = model.forward

    def blind(attention_mask: Any = None, **given: Any) -> Any:
        return forward(attention_mask=None, **given)

    model.forward = blind
    reason = check_encoder_decoder_batch_invariance(EncoderDecoderRunner(model, device=CPU), model)
    assert reason is not None
    assert "other logits than alone" in reason


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_one_at_a_time_gives_the_same(make: Make, architecture: str) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(make(architecture)).eval()
    begun = rows((*as_source([40, 41, 42]), 3), (*as_source([50]), 3))
    together, apart = (
        EncoderDecoderRunner(model, device=CPU, alone=is_alone).run(begun)
        for is_alone in (False, True)
    )
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=0)


def test_a_config_of_two_configs_is_planned_too() -> None:
    module = T5GemmaModuleConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    config = T5GemmaConfig(encoder=module, decoder=module, vocab_size=VOCABULARY)
    skeleton = build_on_meta(config, "float32", "text2text_generation")
    footprint = measure_footprint(skeleton, max_model_len=64, prefill_chunk=64, max_batch_size=8)
    assert footprint.probed
    assert footprint.kv_per_token == 5 * (2 * 2 * 32 + 64)


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_the_plan_counts_what_a_token_leaves(make: Make, architecture: str) -> None:
    config = open_directory(make(architecture)).config
    skeleton = build_on_meta(config, "float32", "text2text_generation")
    footprint = measure_footprint(skeleton, max_model_len=64, prefill_chunk=64, max_batch_size=8)
    blocks = [unit for unit in footprint.units if unit.block is not None]
    assert footprint.probed
    assert footprint.by_block
    assert len(blocks) == 4 + 3
    # Keys and values of 64 numbers each in three layers, and what the encoder made, of 4 bytes.
    # A quarter more is counted for padding.
    assert footprint.kv_per_token == 5 * (3 * 2 * 64 + 64)
    assert sum(unit.kv_per_token for unit in blocks[:4]) == 0
