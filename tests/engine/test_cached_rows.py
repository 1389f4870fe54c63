"""Cached rows are the same tensors whether they are copied or attended to in place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    GPTJConfig,
    GptOssConfig,
    LlamaConfig,
    MiniCPM3Config,
    MptConfig,
    PreTrainedConfig,
)
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import (
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from predictor.engine.generation import row_attention
from predictor.engine.generation.cached_rows import CachedRows
from predictor.engine.generation.layout import Layout, SequenceChunk
from predictor.engine.generation.row_attention import Attention
from predictor.engine.generation.row_source import Source
from predictor.engine.generation.runner import BatchRunner
from predictor.private.cache_layers import cache_layers
from predictor.private.torch import WithoutSubclasses
from tests.checkpoints import VOCABULARY
from tests.conftest import Checkpoints
from tests.engine.test_contamination import tiny
from tests.engine.test_engine import batch_runner
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
    return CachedRows.of(of)


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


def check(
    output: torch.Tensor,
    expected: torch.Tensor,
    rows: Sequence[tuple[int, int]],
    atol: float = 1e-6,
) -> None:
    """Compare what new tokens get; what is computed in the padding is nobody's."""
    assert output.shape == expected.shape
    for index, (_, new) in enumerate(rows):
        assert torch.allclose(output[index, :, -new:], expected[index, :, -new:], atol=atol)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize(
    "rows",
    [[(60, 40)], [(0, 40), (60, 40), (9, 35)], [(100, 40), (0, 40)]],
    ids=["a chunk", "chunks and a prompt", "a prompt beside a chunk"],
)
def test_chunks_of_prompts_attend_without_a_mask(
    rows: list[tuple[int, int]],
    scattered: bool,
    groups: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_attention, "_LEAST_CAUSAL", 0)
    keys, values = both(rows, scattered=scattered)
    keys.pool, values.pool = keys.pool.to(dtype), values.pool.to(dtype)
    query, mask = query_of(keys.layout, groups).to(dtype), mask_of(keys.layout)
    whole = [repeat_kv(one.gathered(), groups) for one in (keys, values)]
    expected = scaled_dot_product_attention(query, *whole, mask, scale=0.3)
    pair = repeat_kv(cached(keys), groups), repeat_kv(cached(values), groups)
    with monkeypatch.context() as patch:
        patch.setattr(Attention, "_hidden", lambda *_: None)
        output = scaled_dot_product_attention(query, *pair, mask, scale=0.3)
    check(output, expected, rows, atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_a_chunk_that_sees_not_all_before_it_keeps_its_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_attention, "_LEAST_CAUSAL", 0)
    rows = [(60, 40), (0, 40)]
    keys, values = both(rows)
    query = query_of(keys.layout)
    for seed in range(20):
        mask, place = mask_of(keys.layout), torch.Generator().manual_seed(seed)
        row, token, column = (int(torch.randint(n, (), generator=place)) for n in (2, 40, 99))
        mask[row, :, token, column] ^= True
        mask[..., -40:] |= torch.eye(40, dtype=torch.bool)  # nobody sees nothing
        expected = scaled_dot_product_attention(query, keys.gathered(), values.gathered(), mask)
        output = scaled_dot_product_attention(query, cached(keys), cached(values), mask)
        check(output, expected, rows)


def test_rows_without_padding_need_no_mask() -> None:
    rows = [(20, 1), (20, 1)]
    keys, values = both(rows)
    query = query_of(keys.layout, 3)
    expected, _ = sdpa_attention_forward(Module(3), query, keys.gathered(), values.gathered(), None)
    output, _ = sdpa_attention_forward(Module(3), query, cached(keys), cached(values), None)
    check(output.transpose(1, 2), expected.transpose(1, 2), [(20, 1)] * 2)
    prompt, of_prompt = both([(0, 12)])
    for groups in (1, 2):
        query = query_of(prompt.layout, groups)
        pair = repeat_kv(cached(prompt), groups), repeat_kv(cached(of_prompt), groups)
        output = scaled_dot_product_attention(query, *pair, is_causal=True)
        pair = repeat_kv(prompt.gathered(), groups), repeat_kv(of_prompt.gathered(), groups)
        whole = scaled_dot_product_attention(query, *pair, is_causal=True)
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


def multiplied(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return (query @ keys.transpose(2, 3)).tanh() @ values


def multiplied_as_one_batch(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    shape = (query.shape[0] * query.shape[1], -1, query.shape[3])
    by_head, bias = query.reshape(shape), torch.ones(shape[0], 1, keys.shape[2])
    of_keys = keys.reshape(shape).transpose(-1, -2)
    scores = bias.baddbmm(batch1=by_head, batch2=of_keys, beta=0.5, alpha=0.3)
    again = torch.baddbmm(bias, by_head, keys.view(shape).mT, beta=0.5, alpha=0.3)
    assert torch.allclose(scores, again, atol=1e-6)
    return torch.bmm(scores.tanh(), values.view(shape)).view(query.shape)


@pytest.mark.parametrize("attend", [multiplied, multiplied_as_one_batch])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_products_of_matrices_are_those_of_whole_rows_and_copy_none(
    monkeypatch: pytest.MonkeyPatch,
    rows: list[tuple[int, int]],
    scattered: bool,
    groups: int,
    attend: Any,
) -> None:
    keys, values = both(rows, scattered=scattered, bucket_shapes=True)
    query = query_of(keys.layout, groups)
    pair = repeat_kv(keys.gathered(), groups), repeat_kv(values.gathered(), groups)
    expected = attend(query, *(tensor.contiguous() for tensor in pair))
    monkeypatch.setattr(Source, "gathered", lambda _: pytest.fail("rows were copied"))
    output = attend(query, repeat_kv(cached(keys), groups), repeat_kv(cached(values), groups))
    assert output.shape == expected.shape
    assert torch.allclose(output, expected, atol=1e-5)


def test_products_read_each_run_of_a_row_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [torch.cat([torch.arange(200, 270), torch.arange(20, 180)]), torch.arange(300, 345)]
    keys, values = source([(1, 1)], 1), source([(1, 1)], 2)
    chunks = [SequenceChunk(key, len(own) - 2, [1] * 2) for key, own in enumerate(pages)]
    keys.layout = values.layout = Layout(chunks, pages, bucket_shapes=True)
    query = query_of(keys.layout, 2)
    whole = repeat_kv(keys.gathered(), 2), repeat_kv(values.gathered(), 2)
    expected = multiplied(query, *whole)
    monkeypatch.setattr(torch.Tensor, "index_select", lambda *_: pytest.fail("pages were copied"))
    output = multiplied(query, repeat_kv(cached(keys), 2), repeat_kv(cached(values), 2))
    assert torch.allclose(output, expected, atol=1e-5)


_SHAPE: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
_LATENT = _SHAPE | {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "head_dim": 4,
    "first_k_dense_replace": 2,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
}
OWN_ATTENTION: dict[str, PreTrainedConfig] = {
    "sinks": GptOssConfig(**_SHAPE, sliding_window=4, num_local_experts=2, num_experts_per_tok=1),
    "soft caps": Gemma2Config(**_SHAPE, sliding_window=4, attn_logit_softcapping=0.5),
    "alibi": BloomConfig(vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
    "mpt": MptConfig(vocab_size=99, d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "falcon": FalconConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "gptj": GPTJConfig(vocab_size=99, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
    "eager": LlamaConfig(**_SHAPE, attn_implementation="eager"),
    "latents": DeepseekV3Config(**_LATENT),
    "latents, eager": DeepseekV3Config(**_LATENT, attn_implementation="eager"),
    "latents, 2": DeepseekV2Config(**_LATENT),
    "latents, MiniCPM": MiniCPM3Config(**_LATENT),
}


@torch.inference_mode()
def random_model(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("config", OWN_ATTENTION.values(), ids=OWN_ATTENTION)
@torch.inference_mode()
def test_models_that_compute_attention_themselves_copy_no_rows(
    monkeypatch: pytest.MonkeyPatch, config: PreTrainedConfig
) -> None:
    model = random_model(config)
    layers = cache_layers(model)
    runner = BatchRunner(
        model, device=torch.device("cpu"), layers=layers, pages=101, max_length=50, window_pages=70
    )
    passes = [
        [SequenceChunk(0, 0, [5, 6, 7, 8, 9]), SequenceChunk(1, 0, [7])],
        [SequenceChunk(0, 5, [4]), SequenceChunk(1, 1, [9, 5, 6])],
        [SequenceChunk(0, 6, [4]), SequenceChunk(1, 4, [9])],
    ]
    runner.cache.gathers = True
    expected = [runner.run(rows) for rows in passes]
    for key in (0, 1):
        runner.release(key)
    runner.cache.gathers = False
    monkeypatch.setattr(Source, "gathered", lambda _: pytest.fail("rows were copied"))
    for rows, logits in zip(passes, expected, strict=True):
        assert torch.allclose(runner.run(rows), logits, atol=1e-4)
    alone = model(input_ids=torch.tensor([[7, 9, 5, 6, 9]]), use_cache=False).logits[0, -1]
    assert torch.allclose(logits[1], alone, atol=1e-4)


USES: dict[str, Any] = {
    "transposed": lambda rows: rows.transpose(2, 3) + 0,
    "transposed with the heads": lambda rows: rows.transpose(1, 2),
    "multiplied with another dtype": lambda rows: (
        (torch.ones(3, HEADS, 1, SIZE).bfloat16()).float() @ rows.mT.float()
    ),
    "joined to others": lambda rows: torch.cat([rows, rows]),
    "multiplied from the left": lambda rows: rows @ torch.full((3, HEADS, SIZE, 1), 0.5),
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


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("lengths", [(8,), (64, 64)], ids=["one row", "beside a prompt"])
def test_last_tokens_see_all_before_them_where_columns_are_as_many_as_tokens(
    name: str, lengths: tuple[int, ...]
) -> None:
    model = tiny(name)
    chance = torch.Generator().manual_seed(0)
    first, *others = torch.randint(4, VOCABULARY, (len(lengths), lengths[0]), generator=chance)
    runner, ids = batch_runner(model), first.tolist()
    runner.run([SequenceChunk(0, 0, ids[:-2])])
    rows = [SequenceChunk(key, 0, other.tolist()) for key, other in enumerate(others, 1)]
    logits = runner.run([SequenceChunk(0, len(ids) - 2, ids[-2:]), *rows])
    assert runner.cache.layout is not None
    assert runner.cache.layout.past == 0
    with torch.inference_mode():
        expected = model(first[None]).logits[0, -1]
    torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-4)
