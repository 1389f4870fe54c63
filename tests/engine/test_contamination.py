"""No sequence sees another: in any company everyone gets the tokens that it gets alone.

Sequences come while others run, some are cancelled, the KV budget is so small that some are
preempted. All that happens at given passes, in the engine's thread, so a run repeats exactly.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    DeepseekV4Config,
    RwkvConfig,
    xLSTMConfig,
)

from predictor.engine.generation.batchability import check_batch_invariance
from predictor.engine.generation.cache_kinds import unbatchable_reason
from predictor.engine.generation.draft_model import DraftModel
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.kv_cache import PagedKVCache
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.engine.generation.serial_runner import SerialRunner
from tests.checkpoints import ALL_CONFIGS, VOCABULARY
from tests.conftest import Checkpoints
from tests.engine.test_engine import RunningEngine, Wrapped, batch_runner
from tests.grids import thinned
from tests.serving import Collected, blocks_on_disk, bring_up, metric

ARCHITECTURES = [name for name in ALL_CONFIGS if name != "llama-tied"]

KV_TOKENS = 76

GREEDY, SAMPLED = 23, 12
"""Requests that make a crowd in which three are preempted."""

CPU = torch.device("cpu")
EMPTY = 600
"""Free pages of a runner of `batch_runner` that nobody uses."""

_ROUNDING = 1e-4
"""How far a log probability may be from the one that is computed alone: in fp32 a batch of another
size rounds otherwise, by up to 6e-6 as measured here. Other tokens change it by more than 0.1."""


@functools.cache
def tiny(name: str) -> Any:
    """Returns a model of three layers whose tokens depend on all that came before."""
    return seeded(ALL_CONFIGS[name])


def seeded(config: Any) -> Any:
    """Returns a model with random weights that attends to some tokens more than to others.

    Input and output embeddings are not tied and norms keep to about 1: else such a model says its
    last token again and again, attends to all alike and hardly notices what it sees.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers = 3
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * 0.15
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model


@dataclass(frozen=True)
class Ask:
    """One request: when it comes, and when it is cancelled, in passes of the model; its scope."""

    prompt: list[int]
    sampling: SamplingParams
    at: int
    gone: int | None = None
    scope: bytes = b""


@dataclass(frozen=True)
class Alone:
    """What transformers says to a prompt, without sampling."""

    tokens: list[int]
    logprobs: list[float]


def asks(seed: int, *, scored: bool = False, sampled: bool = False) -> list[Ask]:
    """Returns requests of random lengths that come at random passes; two are cancelled."""
    chance = random.Random(seed)
    requests = []
    at = 0
    for index in range(12):
        sampling = SamplingParams(
            max_new_tokens=chance.randint(8, 35),
            logprobs=0 if scored else None,
            **({"temperature": 1.0, "top_p": 0.9, "seed": index} if sampled else {}),
        )
        longest = chance.choice([5, 15, 40])
        prompt = [chance.randrange(4, VOCABULARY) for _ in range(chance.randint(1, longest))]
        gone = at + chance.randint(3, 15) if index in (3, 7) else None
        requests.append(Ask(prompt, sampling, at, gone))
        at += chance.choice([0, 0, 1, 2, 4])
    return requests


class Company:
    """Runs requests in one engine."""

    def __init__(
        self,
        runner: Any,
        requests: Sequence[Ask],
        *,
        kv_tokens: int = KV_TOKENS,
        cache: PagedKVCache | None = None,
        draft_model: DraftModel | None = None,
        **limits: Any,
    ) -> None:
        self.requests = list(requests)
        self._callbacks = [Member(self) for _ in requests]
        self._keys: dict[int, int] = {}
        self._cache, self._draft_model = cache, draft_model
        self.runner = Wrapped(runner, lambda _: self._come_and_go())
        self._limits = SchedulerLimits(kv_tokens, **{"sequences": 6, "chunk": 16} | limits)
        self.preemptions = 0

    def run(self, ends: Sequence[int] = ()) -> list[Collected]:
        opened = RunningEngine(
            self.runner,
            limits=self._limits,
            eos_token_ids=ends,
            cache=self._cache,
            draft_model=self._draft_model,
        )
        self.name = opened.name
        with opened:
            self._engine = opened.engine
            with opened.held():
                self._come_and_go()
            for ask, callback in zip(self.requests, self._callbacks, strict=True):
                if ask.gone is None:
                    callback.wait()
            self.preemptions = int(metric("predictor_preemptions_total", opened.name))
        return list(self._callbacks)

    def _come_and_go(self) -> None:
        """Before each pass, those come and go whose time it is."""
        now = len(self.runner.passes)
        for index, ask in enumerate(self.requests):
            if ask.at <= now and index not in self._keys:
                self._come(index)
            if ask.gone is not None and ask.gone <= now and index in self._keys:
                self._engine.cancel(self._keys[index])

    def _come(self, index: int) -> None:
        ask = self.requests[index]
        callback = self._callbacks[index]
        key = self._engine.submit(ask.prompt, ask.sampling, callback, scope=ask.scope)
        self._keys[index] = key

    def someone_ended(self) -> None:
        """Where nobody runs there are no passes to count, so the next comes at once."""
        coming = [index for index in range(len(self.requests)) if index not in self._keys]
        if coming:
            self._come(coming[0])


class Member(Collected):
    """Also notifies the company of its end."""

    def __init__(self, company: Company) -> None:
        super().__init__()
        self._company = company

    def on_finish(self, outcome: Any) -> None:
        self._company.someone_ended()
        super().on_finish(outcome)


@functools.cache
def alone(name: str) -> tuple[Alone, ...]:
    """What transformers says to each of the requests of the greedy seed."""
    return tuple(generated(tiny(name), ask) for ask in asks(GREEDY))


def generated(model: Any, ask: Ask) -> Alone:
    ids = torch.tensor([ask.prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=ask.sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=3,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = output.sequences[0, len(ask.prompt) :].tolist()
    logprobs = [
        float(torch.log_softmax(logits[0].float(), dim=-1)[token])
        for logits, token in zip(output.logits, tokens, strict=True)
    ]
    return Alone(tokens, logprobs)


def check(
    requests: Sequence[Ask], replies: Sequence[Collected], wanted: Sequence[list[int]]
) -> None:
    for ask, callback, tokens in zip(requests, replies, wanted, strict=True):
        if ask.gone is None or callback.outcome is not None:
            assert callback.tokens == tokens
        else:
            assert callback.tokens == tokens[: len(callback.tokens)]


# Every architecture, in memory


@pytest.mark.parametrize(
    ("name", "breakeven_tokens"),
    thinned(ARCHITECTURES, [0, 16, 64], also=lambda _, breakeven_tokens: breakeven_tokens == 16),
)
def test_greedy_tokens_in_company_are_those_of_transformers_alone(
    name: str, breakeven_tokens: int
) -> None:
    is_scored = breakeven_tokens == 16
    requests = asks(GREEDY, scored=is_scored)
    runner = batch_runner(tiny(name), kv_tokens=KV_TOKENS)
    company = Company(runner, requests, breakeven_tokens=breakeven_tokens)
    replies = company.run()
    check(requests, replies, [one.tokens for one in alone(name)])
    assert company.preemptions >= 3
    assert company.runner.most_rows >= 3
    assert has_mixed_pass(company) == (breakeven_tokens > 0)
    if is_scored:
        for callback, wanted in zip(replies, alone(name), strict=True):
            logprobs = [token.logprob for token in callback.scored]
            assert logprobs == pytest.approx(wanted.logprobs[: len(logprobs)], abs=_ROUNDING)


def has_mixed_pass(company: Company) -> bool:
    """Whether rows with different counts of new tokens were in one pass."""
    return any(len({len(row.tokens) for row in rows}) > 1 for rows in company.runner.passes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_these_models_would_notice_what_they_must_not_see(name: str) -> None:
    """Two tokens more at the beginning of a row, and log probabilities differ far over rounding."""
    ids = torch.tensor([asks(GREEDY)[0].prompt[:6]])
    with torch.inference_mode():
        wanted = tiny(name)(ids).logits[0, -1].log_softmax(dim=-1)
        more = torch.cat([torch.tensor([[50, 60]]), ids], dim=1)
        logprobs = tiny(name)(more).logits[0, -1].log_softmax(dim=-1)
    assert float((logprobs - wanted).abs().median()) > 0.1
    tokens = [token for one in alone(name) for token in one.tokens]
    assert len(set(tokens)) > 10


@pytest.mark.parametrize("name", ["bloom", "llama", "gpt2", "gemma3"])
def test_tokens_that_end_a_sequence_end_it_alone(name: str) -> None:
    ends = [alone(name)[index].tokens[3] for index in (0, 5)]
    requests = asks(GREEDY)
    company = Company(batch_runner(tiny(name), kv_tokens=KV_TOKENS), requests, breakeven_tokens=16)
    wanted = []
    for one in alone(name):
        first = next((i for i, token in enumerate(one.tokens) if token in ends), len(one.tokens))
        wanted.append(one.tokens[: first + 1])
    replies = company.run(ends)
    check(requests, replies, wanted)
    assert {replies[0].outcome, replies[5].outcome} == {"eos_token"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_seed_gives_in_company_what_it_gives_alone(name: str) -> None:
    requests = asks(SAMPLED, sampled=True)
    runner = batch_runner(tiny(name), kv_tokens=KV_TOKENS)
    with RunningEngine(runner, limits=SchedulerLimits(KV_TOKENS, sequences=1, chunk=64)) as opened:
        wanted = []
        for ask in requests:
            callback = Collected()
            opened.engine.submit(ask.prompt, ask.sampling, callback)
            wanted.append(callback.wait().tokens)
    company = Company(runner, requests, breakeven_tokens=16)
    check(requests, company.run(), wanted)
    assert company.preemptions > 0
    assert runner.cache.free_pages == KV_TOKENS


# With parts on disk


@pytest.mark.parametrize("name", list(ALL_CONFIGS))
def test_parts_on_disk_change_nothing_of_that(
    checkpoints: Checkpoints, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints(name)
    up = bring_up(folder, device_map=blocks_on_disk(folder), offload_folder=str(tmp_path))
    engine = up.task.engine
    assert isinstance(engine.runner, BatchRunner)
    run, rows_of_passes = BatchRunner.run, []

    def count_rows(self: BatchRunner, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        rows_of_passes.append(len(rows))
        return run(self, rows)

    monkeypatch.setattr(BatchRunner, "run", count_rows)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    requests = asks(3)[:6]
    try:
        callbacks = [Collected() for _ in requests]
        params = SamplingParams(max_new_tokens=8, logprobs=0)
        for ask, callback in zip(requests, callbacks, strict=True):
            engine.submit(ask.prompt, params, callback)
        for ask, callback in zip(requests, callbacks, strict=True):
            wanted = generated(model, Ask(ask.prompt, params, 0))
            tokens = callback.wait().tokens
            until = tokens.index(2) + 1 if 2 in tokens else 8  # </s> ends it here
            assert tokens == wanted.tokens[:until]
            logprobs = [token.logprob for token in callback.scored]
            assert logprobs == pytest.approx(wanted.logprobs[:until], abs=_ROUNDING)
        assert max(rows_of_passes) > 1
    finally:
        engine.stop()
        assert engine.join(30)


# What cannot be batched


def test_a_model_that_could_be_batched_gives_the_same_tokens_one_at_a_time() -> None:
    requests = asks(GREEDY)
    runner = SerialRunner(tiny("llama"), device=CPU)
    company = Company(runner, requests, sequences=1)
    check(requests, company.run(), [one.tokens for one in alone("llama")])
    assert not runner.keys


_SMALL = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (RwkvConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2), "past_key_values"),
        (xLSTMConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2), "attention_mask"),
        (DeepseekV4Config(**_SMALL), "kind"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_a_config_says_why_its_model_cannot_be_batched(config: Any, reason: str) -> None:
    with torch.device("meta"):
        answer = unbatchable_reason(AutoModelForCausalLM.from_config(config))
    assert answer is not None
    assert reason in answer


@pytest.mark.parametrize("name", list(ALL_CONFIGS))
def test_models_that_can_be_batched_are(name: str) -> None:
    model = tiny(name)
    assert unbatchable_reason(model) is None
    runner = batch_runner(model)
    assert check_batch_invariance(runner, model, CPU) is None
    assert runner.cache.free_pages == EMPTY  # nothing of the test is left


# A promise that does not hold


class Changed:
    """A model whose passes are given something else."""

    def __init__(self, model: Any, change: Any) -> None:
        self._model = model
        self._change = change

    def __call__(self, **inputs: Any) -> Any:
        return self._model(**self._change(inputs))


def shifted(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"position_ids": inputs["position_ids"] + 1}


def counted_by_column(inputs: dict[str, Any]) -> dict[str, Any]:
    """Positions that count the padding."""
    width, new = inputs["attention_mask"].shape[1], inputs["input_ids"].shape[1]
    columns = torch.arange(width - new, width).expand_as(inputs["input_ids"])
    return inputs | {"position_ids": columns}


def unmasked(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt2", shifted),
        ("gpt2", counted_by_column),
        ("opt", shifted),
        ("opt", counted_by_column),
        ("llama", counted_by_column),
        ("phi", counted_by_column),
        ("gptj", counted_by_column),
        ("gemma3", counted_by_column),
        *((name, unmasked) for name in ARCHITECTURES),
    ],
)
def test_a_model_that_is_wrong_in_company_is_found_out(name: str, change: Any) -> None:
    model = tiny(name)
    runner = batch_runner(model)
    runner.model = Changed(model, change)
    reason = check_batch_invariance(runner, model, CPU)
    assert reason is not None
    assert "other logits than alone" in reason
    assert runner.cache.free_pages == EMPTY


def test_a_model_that_counts_its_positions_itself_is_found_out() -> None:
    """Its config promises all that is needed, but it takes the padding for tokens."""
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        encoder_layers=1,
        decoder_layers=3,
        decoder_ffn_dim=64,
        decoder_attention_heads=4,
        max_position_embeddings=256,
    )
    model = seeded(config)
    assert unbatchable_reason(model) is None
    assert "other logits than alone" in (
        check_batch_invariance(batch_runner(model), model, CPU) or ""
    )


def test_rows_that_see_each_other_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = BatchRunner.run

    def mixed(self: BatchRunner, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        logits = run(self, rows)
        return logits + 0.05 * logits.flip(0) * (len(rows) > 1)

    monkeypatch.setattr(BatchRunner, "run", mixed)
    model = tiny("llama")
    assert "other logits" in (check_batch_invariance(batch_runner(model), model, CPU) or "")


def test_a_model_that_fails_on_two_at_once_is_found_out() -> None:
    def fail(inputs: dict[str, Any]) -> Any:
        raise NotImplementedError("batches")

    model = tiny("llama")
    runner = batch_runner(model)
    runner.model = Changed(model, fail)
    reason = check_batch_invariance(runner, model, CPU)
    assert reason == "it fails on two sequences at once (NotImplementedError)"
    assert runner.cache.free_pages == EMPTY
