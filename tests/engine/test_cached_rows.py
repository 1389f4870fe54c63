"""Cached rows are the same tensors whether they are copied or attended to in place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import (
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from predictor.engine.generation.cached_rows import CachedRows, Source
from predictor.engine.generation.layout import Layout, SequenceChunk
from predictor.engine.generation.runner import BatchRunner
from predictor.private.torch import WithoutSubclasses
from tests.conftest import Checkpoints
from tests.serving import bring_up

HEADS, SIZE, PAGES = 2, 8, 400


def source(
    rows: Sequence[tuple[int, int]],
    seed: int,
    *,
    scattered: bool = False,
    size: int = SIZE,
    bucket_shapes: bool = False,
) -> Source:
    """Return keys or values of rows, each with so many cached and new tokens."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(HEADS, PAGES, size, generator=generator)
    pool[:, 0] = 0
    chunks = [SequenceChunk(key, start, [1] * new) for key, (start, new) in enumerate(rows)]
    order = torch.arange(1, PAGES)
    if scattered:
        order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(9))]
    ends = [sum(chunk.end for chunk in chunks[: index + 1]) for index in range(len(chunks))]
    pages = [order[end - chunk.end : end] for chunk, end in zip(chunks, ends, strict=True)]
    return Source(pool, Layout(chunks, pages, bucket_shapes=bucket_shapes), 0)


def cached(of: Source) -> CachedRows:
    layout = of.layout
    return CachedRows.of(of, len(layout.lengths), layout.past + layout.new)


def both(*args: Any, **options: Any) -> tuple[Source, Source]:
    keys, values = source(*args, seed=1, **options), source(*args, seed=2, **options)
    values.layout = keys.layout
    return keys, values


def mask_of(layout: Layout, window: int = 0) -> torch.Tensor:
    columns = layout.past + layout.new
    seen = torch.arange(columns) >= columns - layout.lengths[:, None]
    function = sliding_window_causal_mask_function(window) if window else causal_mask_function
    mask: torch.Tensor = sdpa_mask(
        *(len(layout.lengths), layout.new, columns),
        q_offset=layout.past,
        mask_function=function,
        attention_mask=seen,
        allow_is_causal_skip=False,
    )
    return mask


def query_of(layout: Layout, groups: int = 1, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(len(layout.lengths), HEADS * groups, layout.new, size, generator=generator)


def check(output: torch.Tensor, expected: torch.Tensor, rows: Sequence[tuple[int, int]]) -> None:
    """Compare what new tokens get; what is computed in the padding is nobody's."""
    assert output.shape == expected.shape
    for index, (_, new) in enumerate(rows):
        assert torch.allclose(output[index, :, -new:], expected[index, :, -new:], atol=1e-6)


class Module(torch.nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


ROWS = {
    "decode": [(30, 1), (7, 1), (50, 1)],
    "one": [(40, 1)],
    "drafts": [(30, 3), (7, 1), (0, 2)],
    "a prompt beside replies": [(0, 25), (60, 1), (9, 1)],
    "a chunk alone": [(32, 24)],
}


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_attention_in_place_is_that_over_whole_rows_and_copies_none(
    monkeypatch: pytest.MonkeyPatch,
    rows: list[tuple[int, int]],
    scattered: bool,
    groups: int,
    window: int,
) -> None:
    keys, values = both(rows, scattered=scattered, bucket_shapes=True)
    query, mask = query_of(keys.layout, groups), mask_of(keys.layout, window)
    expected, _ = sdpa_attention_forward(
        Module(groups), query, keys.gathered(), values.gathered(), mask
    )
    monkeypatch.setattr(Source, "gathered", lambda _: pytest.fail("rows were copied"))
    output, _ = sdpa_attention_forward(Module(groups), query, cached(keys), cached(values), mask)
    check(output.transpose(1, 2), expected.transpose(1, 2), rows)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_row_with_few_runs_attends_to_each_in_place(
    monkeypatch: pytest.MonkeyPatch, groups: int
) -> None:
    rows = [(300, 1), (205, 1), (70, 1)]
    chunks = [SequenceChunk(key, start, [1]) for key, (start, _) in enumerate(rows)]
    prefix = torch.arange(20, 180)  # the first two rows share it
    pages = [
        torch.cat([prefix, torch.arange(200, 270), torch.arange(1, 18), torch.arange(300, 354)]),
        torch.cat([prefix, torch.arange(354, 400)]),
        torch.arange(90, 161),
    ]
    keys, values = source([(1, 1)], 1), source([(1, 1)], 2)
    keys.layout = values.layout = Layout(chunks, pages, bucket_shapes=True)
    query, mask = query_of(keys.layout, groups), mask_of(keys.layout)
    whole = repeat_kv(keys.gathered(), groups), repeat_kv(values.gathered(), groups)
    for scale in (None, 0.7):
        expected = scaled_dot_product_attention(query, *whole, mask, scale=scale)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "index_select", lambda *_: pytest.fail("pages were copied"))
            pair = repeat_kv(cached(keys), groups), repeat_kv(cached(values), groups)
            output = scaled_dot_product_attention(query, *pair, mask, scale=scale)
        check(output, expected, rows)


def test_rows_without_padding_need_no_mask() -> None:
    rows = [(20, 1), (20, 1)]
    keys, values = both(rows)
    query = query_of(keys.layout, 3)
    expected, _ = sdpa_attention_forward(Module(3), query, keys.gathered(), values.gathered(), None)
    output, _ = sdpa_attention_forward(Module(3), query, cached(keys), cached(values), None)
    check(output.transpose(1, 2), expected.transpose(1, 2), [(20, 1)] * 2)
    prompt, of_prompt = both([(0, 12)])
    query = query_of(prompt.layout)
    pair = cached(prompt), cached(of_prompt)
    output = scaled_dot_product_attention(query, *pair, is_causal=True)
    whole = scaled_dot_product_attention(
        query, prompt.gathered(), of_prompt.gathered(), is_causal=True
    )
    check(output, whole, [(0, 12)])


def test_a_model_that_attends_to_padding_gets_it() -> None:
    rows = [(30, 1), (7, 1)]
    keys, values = both(rows)
    query = query_of(keys.layout)
    for mask in (None, torch.ones(2, 1, 1, 31, dtype=torch.bool), torch.zeros(2, 1, 1, 31)):
        output = scaled_dot_product_attention(query, cached(keys), cached(values), mask)
        whole = scaled_dot_product_attention(query, keys.gathered(), values.gathered(), mask)
        check(output, whole, rows)


def test_biases_of_each_head_are_added() -> None:
    rows = [(30, 2), (7, 2)]
    keys, values = both(rows)
    query, mask = query_of(keys.layout, 2), mask_of(keys.layout)
    bias = torch.randn(1, 2 * HEADS, 1, mask.shape[-1])
    biased = bias.masked_fill(~mask, torch.finfo(torch.float32).min)
    pairs = [(repeat_kv(k, 2), repeat_kv(v, 2)) for k, v in ((keys.gathered(), values.gathered()),)]
    expected = scaled_dot_product_attention(query, *pairs[0], biased)
    output = scaled_dot_product_attention(
        query, repeat_kv(cached(keys), 2), repeat_kv(cached(values), 2), biased
    )
    check(output, expected, rows)


def test_values_may_be_of_another_size_than_keys() -> None:
    rows = [(30, 1), (7, 1)]
    keys, values = source(rows, 1), source(rows, 2, size=5)
    values.layout = keys.layout
    query, mask = query_of(keys.layout), mask_of(keys.layout)
    output = scaled_dot_product_attention(query, cached(keys), cached(values), mask, scale=0.3)
    whole = scaled_dot_product_attention(query, keys.gathered(), values.gathered(), mask, scale=0.3)
    check(output, whole, rows)


def test_a_row_with_numbers_that_are_not_finite_spoils_no_other() -> None:
    rows = [(30, 1), (7, 1)]
    keys, values = both(rows)
    query, mask = query_of(keys.layout), mask_of(keys.layout)
    expected = scaled_dot_product_attention(query, keys.gathered(), values.gathered(), mask)
    values.pool[:, 1:31] = float("nan")
    output = scaled_dot_product_attention(query, cached(keys), cached(values), mask)
    assert output[0].isnan().all()
    assert torch.allclose(output[1], expected[1], atol=1e-6)


USES: dict[str, Any] = {
    "transposed": lambda rows: rows.transpose(2, 3),
    "joined to others": lambda rows: torch.cat([rows, rows]),
    "multiplied": lambda rows: torch.randn(3, HEADS, 1, SIZE).fill_(0.5) @ rows.mT,
    "cut": lambda rows: rows[:, :, -4:],
    "cast": lambda rows: rows.to(torch.bfloat16),
    "repeated": lambda rows: repeat_kv(rows, 3) + 0,
    "repeated by PyTorch": lambda rows: rows.repeat_interleave(2, dim=1),
    "with a new axis": lambda rows: rows[:, :, None] * 2,
    "reshaped otherwise": lambda rows: repeat_kv(rows, 2).reshape(3, -1),
    "reshaped with heads in another order": lambda rows: (
        rows[:, :, None].expand(3, HEADS, 2, 51, SIZE).reshape(3, HEADS, 102, SIZE)
    ),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_any_other_use_has_the_values(use: Any) -> None:
    keys = source(ROWS["decode"], 1, scattered=True)
    result = use(cached(keys))
    assert not isinstance(result, CachedRows)
    assert torch.equal(result, use(keys.gathered()))


def test_shapes_are_known_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = source(ROWS["decode"], 1)
    monkeypatch.setattr(Source, "gathered", lambda _: pytest.fail("rows were copied"))
    rows = cached(keys)
    assert (rows.shape, rows.dtype) == ((3, HEADS, 51, SIZE), torch.float32)
    assert (rows.device.type, rows.ndim, rows.size(2)) == ("cpu", 4, 51)
    assert repeat_kv(rows, 4).shape == (3, 4 * HEADS, 51, SIZE)


def test_random_layouts_attend_alike() -> None:
    chance = random.Random(7)
    for _ in range(40):
        starts = [chance.randint(0, 60) for _ in range(chance.randint(1, 4))]
        rows = [(start, chance.choice([1, 1, 2, 20])) for start in starts]
        keys, values = both(rows, scattered=chance.random() < 0.5)
        query, mask = query_of(keys.layout, 2), mask_of(keys.layout, chance.choice([0, 0, 7]))
        pair = (repeat_kv(cached(keys), 2), repeat_kv(cached(values), 2))
        whole = (repeat_kv(keys.gathered(), 2), repeat_kv(values.gathered(), 2))
        output = scaled_dot_product_attention(query, *pair, mask)
        check(output, scaled_dot_product_attention(query, *whole, mask), rows)


@pytest.mark.parametrize("is_blind", [False, True], ids=["seen", "unseen"])
def test_a_start_has_rows_copied_if_its_model_looks_past_them(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, is_blind: bool
) -> None:
    def attend(*args: Any, **kwargs: Any) -> Any:
        """Compute attention as a kernel in C++ does, which takes the memory of its arguments."""
        with WithoutSubclasses() if is_blind else nullcontext():
            return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", attend)
    folder = checkpoints("llama")
    up = bring_up(folder)
    engine = up.task.engine
    try:
        assert isinstance(engine.runner, BatchRunner)
        assert engine.runner.cache.gathers == is_blind
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        expected = model.generate(
            torch.tensor([[5, 6, 7, 8]]), max_new_tokens=6, do_sample=False, eos_token_id=None
        )
        assert (
            up.tokens([5, 6, 7, 8], max_new_tokens=6, ignore_eos=True) == expected[0, 4:].tolist()
        )
    finally:
        engine.stop()
        assert engine.join(30)
