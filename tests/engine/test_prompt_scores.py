"""Log probabilities of prompts: those of the whole model at once, in chunks and in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, GraniteConfig, MambaConfig, RwkvConfig

from predictor.checkpoint.adapters import read_adapter
from predictor.engine.generation import model_tail
from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.runner import BatchRunner
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.engine.generation.serial_runner import SerialRunner
from predictor.errors import GenerationFailed, RequestError
from predictor.private.cache_layers import cache_layers
from tests.adapters import merged, write_adapter
from tests.checkpoints import ALL_CONFIGS, VOCABULARY
from tests.engine.test_contamination import seeded
from tests.engine.test_engine import KV_TOKENS, PROMPTS, RunningEngine, Wrapped, batch_runner
from tests.serving import Collected

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
OTHERS: dict[str, Any] = {
    "gemma2": Gemma2Config(**_SIZES, **_HEADS, head_dim=16, final_logit_softcapping=2.0),
    "granite": GraniteConfig(**_SIZES, **_HEADS, logits_scaling=4.0),
    "mamba": MambaConfig(**_SIZES, state_size=8),
}
NAMES = ("llama", "gpt2", "mistral", "gemma3", "falcon", *OTHERS)
LIMITS = SchedulerLimits(KV_TOKENS, sequences=8, chunk=8, breakeven_tokens=8)


def model_of(name: str) -> Any:
    return seeded(OTHERS.get(name) or ALL_CONFIGS[name])


@torch.inference_mode()
def expected(model: Any, prompt: list[int]) -> torch.Tensor:
    """Log probabilities of all tokens after each but the last token of a prompt."""
    logits = model(torch.tensor([prompt])).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1)


def check(collected: Any, model: Any, prompt: list[int], alternatives: int) -> None:
    logprobs = expected(model, prompt)
    assert [token.id for token in collected.prompt_tokens] == prompt[1:]
    for token, row in zip(collected.prompt_tokens, logprobs, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert token.rank == 1 + int((row > row[token.id]).sum())
        values, _ = row.topk(alternatives)
        assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_has_the_log_probabilities_of_the_whole_model(name: str) -> None:
    model = model_of(name)
    keeps_state = name == "mamba"
    limits = SchedulerLimits(
        KV_TOKENS,
        sequences=8,
        chunk=8,
        breakeven_tokens=8,
        keeps_state=keeps_state,
        one_by_one=keeps_state,
    )
    with RunningEngine(batch_runner(model), limits=limits) as running:
        crowd = running.together(PROMPTS, prompt_logprobs=3, max_new_tokens=2)
    for prompt, collected in zip(PROMPTS, crowd, strict=True):
        check(collected, model, prompt, 3)
        assert len(collected.tokens) == 2


def test_a_model_that_runs_alone_has_them_too() -> None:
    model = seeded(RwkvConfig(**_SIZES, context_length=64))
    with RunningEngine(SerialRunner(model, device=torch.device("cpu"))) as running:
        collected = running.run(PROMPTS[0], prompt_logprobs=2, max_new_tokens=1)
    check(collected, model, PROMPTS[0], 2)


def test_a_prompt_alone_is_computed_and_gives_no_token() -> None:
    model = model_of("llama")
    with RunningEngine(batch_runner(model), limits=LIMITS) as running:
        collected = running.run(PROMPTS[0], prompt_logprobs=0, max_new_tokens=0)
        bare = running.run(PROMPTS[0], max_new_tokens=0)
        one = running.run([5], prompt_logprobs=0, max_new_tokens=0)
    check(collected, model, PROMPTS[0], 0)
    assert (collected.tokens, collected.outcome) == ([], "length")
    assert (bare.prompt_tokens, bare.tokens, bare.outcome) == ([], [], "length")
    assert (one.prompt_tokens, one.outcome) == ([], "length")


def test_a_cached_prefix_is_computed_again() -> None:
    model = model_of("llama")
    runner = batch_runner(model)
    with RunningEngine(runner, cache=runner.cache) as running:
        prompt = list(range(10, 74))
        running.run(prompt, max_new_tokens=1)
        again = running.run(prompt, max_new_tokens=1)
        assert again.cached > 0
        scored = running.run(prompt, prompt_logprobs=1, max_new_tokens=1)
    assert scored.cached == 0
    check(scored, model, prompt, 1)


def test_a_preempted_prompt_passes_each_token_on_once() -> None:
    model = model_of("llama")
    limits = SchedulerLimits(60, sequences=8, chunk=8, breakeven_tokens=8)
    with RunningEngine(batch_runner(model, kv_tokens=60), limits=limits) as running:
        crowd = running.together(PROMPTS[:3], prompt_logprobs=1, max_new_tokens=20)
    for prompt, collected in zip(PROMPTS, crowd, strict=False):
        check(collected, model, prompt, 1)
        assert len(collected.tokens) == 20


def test_logits_of_few_positions_are_in_memory_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    scored = model_tail._scored

    def recorded(logits: torch.Tensor, *others: Any) -> Any:
        sizes.append(len(logits))
        return scored(logits, *others)

    monkeypatch.setattr(model_tail, "_scored", recorded)
    model = model_of("llama")
    runner = BatchRunner(
        model,
        device=torch.device("cpu"),
        layers=cache_layers(model),
        pages=200,
        max_length=128,
        positions=4,
    )
    with RunningEngine(runner) as running:
        collected = running.run(PROMPTS[0], prompt_logprobs=1, max_new_tokens=1)
    check(collected, model, PROMPTS[0], 1)
    assert max(sizes) == 4


def test_a_model_whose_logits_are_not_those_of_its_tail_is_refused() -> None:
    model = model_of("llama")
    forward, count = model.lm_head.forward, [0]

    def drifting(states: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        logits: torch.Tensor = forward(states)
        return logits.roll(count[0], dims=-1)

    model.lm_head.forward = drifting
    with RunningEngine(batch_runner(model)) as running:
        with pytest.raises(RequestError, match="cannot be computed for this model"):
            running.run(PROMPTS[0], prompt_logprobs=1, max_new_tokens=1)
        assert len(running.run(PROMPTS[0], max_new_tokens=2).tokens) == 2


def test_scores_that_are_no_numbers_fail_their_own_sequence() -> None:
    model = model_of("llama")
    runner = batch_runner(model)

    def spoil(rows: Any) -> None:
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan") if 250 in rows[0].tokens else 1.0)

    with RunningEngine(Wrapped(runner, spoil)) as running:
        with pytest.raises(GenerationFailed):
            running.run([250] * 20, prompt_logprobs=1, max_new_tokens=1)
        check(running.run(PROMPTS[0], prompt_logprobs=1, max_new_tokens=1), model, PROMPTS[0], 1)


def adapted(kind: str, folder: Path) -> tuple[Any, dict[str | None, Any]]:
    """A runner with two adapters of the head, and models with and without them merged."""
    config = RwkvConfig(**_SIZES, context_length=64)
    model, *others = (seeded(config) if kind == "serial" else model_of("llama") for _ in range(4))
    names, layer = ("one", "two"), "head" if kind == "serial" else "lm_head"
    paths = [write_adapter(folder / n, model, (layer,), seed=i) for i, n in enumerate(names)]
    adapters = LoadedAdapters(
        model, [read_adapter(name, path) for name, path in zip(names, paths, strict=True)], "cpu"
    )
    own = [merged(other, path, 2.0) for other, path in zip(others[1:], paths, strict=True)]
    models = dict(zip((None, *names), (others[0], *own), strict=True))
    device = torch.device("cpu")
    if kind == "serial":
        return SerialRunner(model, device=device, adapters=adapters, positions=4), models
    runner = BatchRunner(
        model,
        device=device,
        layers=cache_layers(model),
        pages=200,
        max_length=128,
        adapters=adapters,
        positions=4,
    )
    return runner, models


@pytest.mark.parametrize("first", [None, "one"])
@pytest.mark.parametrize("kind", ["batched", "serial"])
def test_an_adapter_of_the_head_counts_for_its_own_rows_whoever_comes_first(
    kind: str, first: str | None, tmp_path: Path
) -> None:
    runner, models = adapted(kind, tmp_path)
    prompt = PROMPTS[0]
    names = sorted(models, key=lambda name: name != first)
    with RunningEngine(runner, limits=LIMITS) as running:
        for name in names:
            alone = running.run(prompt, prompt_logprobs=2, max_new_tokens=1, adapter=name)
            check(alone, models[name], prompt, 2)
        crowd = {name: Collected() for name in names}
        with running.held():
            for name, collected in crowd.items():
                params = SamplingParams(1, prompt_logprobs=2, adapter=name)
                running.engine.submit(prompt, params, collected)
        for name, collected in crowd.items():
            check(collected.wait(), models[name], prompt, 2)
    assert not torch.allclose(expected(models[None], prompt), expected(models["two"], prompt))
