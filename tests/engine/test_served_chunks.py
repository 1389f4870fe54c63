"""Large chunks of prompts, and small ones beside replies, change no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from predictor.constraints import largest_chunk
from predictor.settings import read_settings
from tests.conftest import Checkpoints
from tests.engine.test_contamination import GREEDY, KV_TOKENS, Company, alone, asks, check, tiny
from tests.engine.test_engine import batch_runner
from tests.serving import blocks_on_disk, bring_up, metric


def test_an_offloaded_model_computes_larger_chunks_and_gives_the_same_tokens(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    replies, passes = [], []
    for largest in (16, 128):
        name = f"chunks-{largest}"
        flags: dict[str, Any] = {"device_map": blocks_on_disk(folder), "model_name": name}
        up = bring_up(
            folder,
            offload_folder=str(tmp_path / name),
            max_prefill_chunk=largest,
            prefix_cache=False,
            prefill_target=1e-9,
            **flags,
        )
        assert up.prepared.placement.prefill_chunk == up.prepared.chunk == largest
        limits = up.task.engine.limits
        assert 16 <= limits.chunk <= largest
        assert limits.reply_chunk <= limits.chunk
        before = metric("predictor_step_seconds_count", name)
        replies.append(up.tokens([7, *range(4, 100)], max_new_tokens=5, ignore_eos=True))
        passes.append(metric("predictor_step_seconds_count", name) - before)
        up.task.engine.stop()
        assert up.task.engine.join(30)
    assert replies[0] == replies[1]
    assert passes[0] >= passes[1]


def test_a_chunk_that_is_set_bounds_all_passes_unless_a_larger_one_is_set_too() -> None:
    def largest(**flags: int) -> int:
        return largest_chunk(read_settings(flags, environ={}))

    assert largest() == 8192
    assert largest(prefill_chunk=64) == 0
    assert largest(prefill_chunk=64, max_prefill_chunk=256) == largest(max_prefill_chunk=256) == 256


def test_in_company_chunks_of_all_sizes_give_the_tokens_of_transformers_alone() -> None:
    requests = asks(GREEDY)
    runner = batch_runner(tiny("llama"), kv_tokens=KV_TOKENS)
    company = Company(runner, requests, chunk=64, reply_chunk=3, breakeven_tokens=4, draft_tokens=3)
    check(requests, company.run(), [one.tokens for one in alone("llama")])
    counts = {len(row.tokens) - row.drafts for rows in company.runner.passes for row in rows}
    assert max(counts) > 3  # while nobody is in the middle of a reply
    assert 3 in counts
    assert company.preemptions > 0
