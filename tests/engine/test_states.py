"""Models that keep a state: in any company everyone gets the tokens that `generate` gives alone.

Sequences come while others run, one is cancelled, some are preempted, prompts are computed in
chunks, and slots are used again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from predictor.checkpoint.adapters import read_adapter
from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.batchability import check_batch_invariance, check_serial
from predictor.engine.generation.cache_kinds import unbatchable_reason
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.kv_accounting import PADDING_PAGES
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.engine.generation.serial_runner import SerialRunner
from predictor.errors import ModelUnusable
from predictor.private.cache_layers import cache_layers
from tests.adapters import write_adapter
from tests.engine.test_contamination import Alone, Ask, Company, check, generated
from tests.engine.test_engine import RunningEngine
from tests.serving import Collected, blocks_on_disk, bring_up
from tests.states import CONFIGS, ONE_BY_ONE, SERIAL, make_checkpoint, noisy

KV_TOKENS, SLOTS, CHUNK = 48, 4, 8
CPU = torch.device("cpu")

BATCHED = [name for name in CONFIGS if name not in SERIAL]
WITH_STATE = [name for name in BATCHED if name != "gemma3n"]
WITHOUT_KEYS = {"mamba", "falcon_mamba", "mamba2"}
ON_DISK = ["mamba2", "qwen3_next", "lfm2", "jamba", "rwkv"]

REQUESTS = [
    Ask([50 + index for index in range(length)], SamplingParams(max_new_tokens=new), at, gone)
    for length, new, at, gone in [
        (9, 24, 0, None),
        (3, 22, 0, None),
        (1, 20, 1, None),
        (12, 6, 2, 9),
        (21, 9, 3, None),
        (3, 12, 4, None),
        (2, 8, 6, None),
    ]
]


@functools.cache
def alone(name: str) -> tuple[Alone, ...]:
    return tuple(generated(noisy(name), ask) for ask in REQUESTS)


def batch_runner(
    name: str, block_tokens: int = CHUNK, adapters: LoadedAdapters | None = None
) -> BatchRunner:
    return BatchRunner(
        noisy(name),
        device=CPU,
        layers=cache_layers(noisy(name)),
        pages=KV_TOKENS + PADDING_PAGES,
        max_length=64,
        slots=SLOTS,
        block_tokens=block_tokens,
        adapters=adapters,
    )


def limits(name: str, **others: Any) -> dict[str, Any]:
    states = {"keeps_state": name in WITH_STATE, "one_by_one": name in ONE_BY_ONE}
    states["keeps_tokens"] = name not in WITHOUT_KEYS
    return {"sequences": SLOTS, "chunk": CHUNK, "breakeven_tokens": 16} | states | others


def company_of(runner: Any, name: str, **others: Any) -> Company:
    return Company(runner, REQUESTS, kv_tokens=KV_TOKENS, **limits(name, **others))


@pytest.mark.parametrize("name", BATCHED)
def test_tokens_in_company_are_those_of_generate_alone(name: str) -> None:
    runner = batch_runner(name)
    company = company_of(runner, name)
    check(REQUESTS, company.run(), [one.tokens for one in alone(name)])
    assert runner.cache.keeps_tokens == (name not in WITHOUT_KEYS)
    assert (company.preemptions > 0) == (name not in WITHOUT_KEYS)
    assert company.runner.most_rows >= 3
    assert runner.cache.free_pages == KV_TOKENS
    assert runner.cache.states.free == SLOTS


SHARING = [
    Ask(prompt, SamplingParams(max_new_tokens=new), at, gone)
    for prompt, new, at, gone in [
        ([*range(50, 72)], 8, 0, None),
        ([*range(50, 67), 9, 9], 9, 0, None),
        ([*range(50, 72)], 5, 2, None),
        ([*range(50, 66), 7], 6, 6, 8),
        ([*range(60, 81)], 4, 7, None),
        ([*range(50, 59), 3, 4], 12, 8, None),
        ([*range(50, 90)], 3, 9, None),
        ([7], 20, 10, None),
    ]
]


@pytest.mark.parametrize("name", WITH_STATE)
def test_sequences_that_start_from_the_states_of_others_get_the_tokens_of_generate(
    name: str,
) -> None:
    runner = batch_runner(name)
    sizes = limits(name)
    company = Company(runner, SHARING, kv_tokens=KV_TOKENS, cache=runner.cache, **sizes)
    replies = company.run()
    check(SHARING, replies, [generated(noisy(name), ask).tokens for ask in SHARING])
    assert sum(reply.cached for reply in replies) >= CHUNK
    assert replies[4].cached == 0  # the same tokens, but not from the beginning
    assert replies[5].cached % CHUNK == 0
    assert runner.cache.free_pages == KV_TOKENS
    assert runner.cache.states.free == SLOTS


@pytest.mark.parametrize("name", ["mamba2", "jamba"])
def test_other_scopes_and_adapters_share_no_states(name: str, tmp_path: Path) -> None:
    adapter = read_adapter("a", write_adapter(tmp_path, noisy(name), ("lm_head",), seed=0))
    runner = batch_runner(name, adapters=LoadedAdapters(noisy(name), [adapter], CPU))
    own = SchedulerLimits(KV_TOKENS, **limits(name))
    with RunningEngine(runner, limits=own, cache=runner.cache) as opened:

        def cached(scope: bytes, name: str | None) -> int:
            reply = Collected()
            params = SamplingParams(max_new_tokens=2, adapter=name)
            opened.engine.submit([*range(50, 70)], params, reply, scope=scope)
            return reply.wait().cached

        for caller in ((b"one", None), (b"one", "a"), (b"other", "a"), (b"other", None)):
            assert [cached(*caller) for _ in range(2)] == [0, 2 * CHUNK]


@pytest.mark.parametrize("name", ["mamba2", "jamba"])
def test_states_after_logits_that_are_not_finite_are_forgotten(name: str) -> None:
    runner = batch_runner(name)
    own = SchedulerLimits(KV_TOKENS, **limits(name))
    run, prompt = runner.run, [*range(50, 70)]

    def spoil(rows: Sequence[SequenceChunk]) -> torch.Tensor:
        return run(rows) * float("nan")

    with RunningEngine(runner, limits=own, cache=runner.cache) as opened:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "run", spoil)
            opened.engine.submit(prompt, SamplingParams(max_new_tokens=2), spoilt := Collected())
            assert spoilt.ended.wait(60)
        assert opened.run(prompt, max_new_tokens=2).cached == 0
        assert opened.run(prompt, max_new_tokens=2).cached == 2 * CHUNK


@pytest.mark.parametrize("name", sorted(SERIAL))
def test_one_at_a_time_tokens_are_those_of_generate(name: str) -> None:
    runner = SerialRunner(noisy(name), device=CPU)
    company = company_of(runner, name, sequences=1, one_by_one=True)
    check(REQUESTS, company.run(), [one.tokens for one in alone(name)])
    assert not runner.keys


@pytest.mark.parametrize("name", BATCHED)
def test_the_start_finds_out_how_a_state_may_be_continued(name: str) -> None:
    runner = batch_runner(name)
    assert unbatchable_reason(noisy(name)) is None
    reason = check_batch_invariance(runner, noisy(name), CPU)
    assert (reason is not None) == (name in ONE_BY_ONE)
    assert check_batch_invariance(runner, noisy(name), CPU, one_by_one=True) is None
    assert runner.cache.free_pages == KV_TOKENS
    assert runner.cache.states.free == SLOTS


@pytest.mark.parametrize("name", sorted(SERIAL))
def test_what_keeps_its_state_elsewhere_is_not_batched(name: str) -> None:
    model = noisy(name)
    reason = unbatchable_reason(model)
    assert reason or name == "recurrent_gemma"
    assert reason or check_batch_invariance(batch_runner(name), model, CPU, one_by_one=True)
    assert check_serial(SerialRunner(model, device=CPU), model, CPU, one_by_one=True) is None


def test_a_state_that_is_forgotten_is_seen_whatever_the_weights() -> None:
    """With small weights the logits hardly change, and in half precision rounding hides it."""
    model = noisy("mamba")
    runner = batch_runner("mamba")
    runner.model = _Deaf(model)
    reason = check_batch_invariance(runner, model, CPU)
    assert reason == "its layers forget their state if there are several new tokens"


class _Deaf(nn.Module):
    """A model whose logits are always those of a first run: they tell nothing."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(self, **inputs: Any) -> Any:
        output = self._model(**inputs)
        output.logits = torch.zeros_like(output.logits)
        return output


@pytest.mark.parametrize("name", ["mamba2", "jamba", "qwen3_next"])
def test_after_a_pass_that_failed_halfway_the_states_are_computed_again(name: str) -> None:
    model, runner, passes = noisy(name), batch_runner(name), []

    def fail_once(*_: Any) -> None:
        passes.append(runner.cache.states.continues)
        if sum(passes) == 6 and passes[-1]:
            raise ArithmeticError("once")

    base = getattr(model, model.base_model_prefix)
    handle = base.layers[2].register_forward_pre_hook(fail_once)
    try:
        company = company_of(runner, name)
        check(REQUESTS, company.run(), [one.tokens for one in alone(name)])
    finally:
        handle.remove()
    rows = [row for rows in company.runner.passes for row in rows if row.key >= 0]
    assert sum(row.start == 0 for row in rows) > len(REQUESTS) + company.preemptions


def test_a_model_that_keeps_no_keys_has_no_pages_and_takes_all_that_have_slots(
    tmp_path: Path,
) -> None:
    up = bring_up(make_checkpoint(tmp_path / "model", "mamba2"), max_model_len=32, max_batch_size=4)
    engine = up.task.engine
    try:
        assert up.prepared.placement.kv_tokens == 0
        assert engine.runner.cache.free_pages == 0
        assert not engine.limits.keeps_tokens
        callbacks = [Collected() for _ in range(4)]
        for index, callback in enumerate(callbacks):
            engine.submit([50 + index] * 8, SamplingParams(max_new_tokens=24), callback)
        for index, callback in enumerate(callbacks):
            ask = Ask([50 + index] * 8, SamplingParams(max_new_tokens=24), 0)
            tokens = generated(noisy("mamba2"), ask).tokens
            assert callback.wait().tokens == tokens[: len(callback.tokens)]
            assert len(callback.tokens) == 24 or callback.tokens[-1] == 2
    finally:
        engine.stop()
        assert engine.join(30)


def test_a_model_whose_replies_would_be_wrong_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(tmp_path / "model", "recurrent_gemma")
    run = SerialRunner.run

    def wrong(self: SerialRunner, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        logits = run(self, rows)
        return logits if rows[0].start == 0 else logits.flip(1)

    monkeypatch.setattr(SerialRunner, "run", wrong)
    with pytest.raises(ModelUnusable, match=r"token by token it gives other logits"):
        bring_up(folder)


# Served


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ON_DISK else pytest.mark.full_grid)
        for name in CONFIGS
        if name != "gemma3n"
    ],
)
@pytest.mark.parametrize("is_on_disk", [False, True], ids=["resident", "on-disk"])
def test_a_server_gives_the_tokens_of_generate(tmp_path: Path, name: str, is_on_disk: bool) -> None:
    folder = make_checkpoint(tmp_path / "model", name)
    flags = {"device_map": blocks_on_disk(folder)} if is_on_disk else {}
    up = bring_up(folder, offload_folder=str(tmp_path / "offload"), **flags)
    engine = up.task.engine
    assert isinstance(engine.runner, SerialRunner) == (name in SERIAL)
    try:
        callbacks = [Collected() for _ in REQUESTS[:5]]
        for ask, callback in zip(REQUESTS, callbacks, strict=False):
            engine.submit(ask.prompt, ask.sampling, callback)
        for callback, one in zip(callbacks, alone(name), strict=False):
            tokens = one.tokens
            until = tokens.index(2) + 1 if 2 in tokens else len(tokens)
            assert callback.wait().tokens == tokens[:until]
    finally:
        engine.stop()
        assert engine.join(30)
