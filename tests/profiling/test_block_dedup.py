"""Blocks of one kind: few of them are executed, with the sizes of executing all of them."""

import copy
import functools

import pytest
import torch
from torch import nn
from transformers import Gemma3nTextConfig, LlamaConfig, RwkvConfig

from predictor.profiling.block_dedup import BlockDeduplicator
from predictor.profiling.blocks import find_blocks
from predictor.profiling.decoder_probe import probe
from predictor.profiling.footprint import build_on_meta, measure_footprint
from tests.checkpoints import ALL_CONFIGS, CONFIGS
from tests.grids import thinned
from tests.placement.models import ARCHITECTURES

EVERY = ALL_CONFIGS | ARCHITECTURES
SIZES = [
    {"max_model_len": 64, "chunk": 16, "rows": 1},
    {"max_model_len": 64, "chunk": 64, "rows": 4},
    {"max_model_len": 7, "chunk": 7, "rows": 3},
    {"max_model_len": 64, "chunk": 1, "rows": 64},
]
PASSES = 4
"""Passes of a probe."""


def on_meta(config=CONFIGS["llama"], dtype="float32"):
    model = build_on_meta(copy.deepcopy(config), dtype)
    return model, [model.get_submodule(name) for name in find_blocks(model)]


def count_runs(modules):
    """A list to which every module adds its number when it is run, whatever is called for it."""
    runs = []
    for number, module in enumerate(modules):
        module.register_forward_pre_hook(lambda *_, number=number: runs.append(number))
    return runs


def probed(model, blocks, deduplicator=None, **sizes):
    result = probe(model, blocks, deduplicator=deduplicator, **(SIZES[0] | sizes))
    assert result.measured
    return result


@pytest.mark.parametrize(("name", "sizes"), thinned(list(EVERY), SIZES), ids=str)
def test_running_few_blocks_gives_the_sizes_of_running_all(name, sizes):
    model, blocks = on_meta(EVERY[name])
    whole = probe(model, blocks, **sizes)

    deduplicator = BlockDeduplicator(blocks, model.config)
    assert probe(model, blocks, deduplicator=deduplicator, **sizes) == whole


def test_two_blocks_of_a_kind_are_run_in_a_pass():
    model, blocks = on_meta()
    deduplicator = BlockDeduplicator(blocks, model.config)
    runs = count_runs([block.mlp for block in blocks])
    probed(model, blocks, deduplicator)

    assert len(blocks) == 6
    assert runs == [0, 1] * PASSES


def test_every_kind_of_block_is_run():
    config = copy.deepcopy(ARCHITECTURES["gemma3"])
    config.num_hidden_layers = 8
    kinds = ["sliding_attention", "full_attention"]
    config.layer_types = [kind for kind in kinds for _ in range(2)] * 2
    model, blocks = on_meta(config)
    deduplicator = BlockDeduplicator(blocks, model.config)
    runs = count_runs([block.mlp for block in blocks])
    probed(model, blocks, deduplicator)

    assert runs == [0, 1, 2, 3] * (PASSES + 1)  # one more shows that the windows suffice


@pytest.mark.parametrize(
    "differ",
    [
        lambda block, index: setattr(block.self_attn, "window", index),
        lambda block, index: setattr(block.mlp, "scale", lambda x: x * 2),
        lambda block, index: setattr(block, "norm", nn.LayerNorm(8 + index)),
        lambda block, index: block.register_buffer("seen", torch.zeros(1 + index)),
        lambda block, index: setattr(block.self_attn, "layer_idx", 5 - index),
    ],
    ids=["number", "function", "module", "buffer", "another's cache"],
)
def test_blocks_that_differ_in_anything_are_all_run(differ):
    model, blocks = on_meta()
    for index, block in enumerate(blocks):
        differ(block, index)

    assert not BlockDeduplicator(blocks, model.config).has_duplicates
    assert BlockDeduplicator(on_meta()[1], model.config).has_duplicates


def test_blocks_that_the_config_tells_apart_are_all_run():
    model, blocks = on_meta()
    model.config.widths = [8 + index for index in range(len(blocks))]

    assert not BlockDeduplicator(blocks, model.config).has_duplicates


def test_two_alike_are_too_few_to_leave_one_out():
    model, blocks = on_meta()

    assert not BlockDeduplicator(blocks[:2], model.config).has_duplicates


def changed(monkeypatch, change):
    """A model whose blocks all do something besides, by their class."""
    model, blocks = on_meta()
    kind = type(blocks[0])
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *a, **k: change(self, forward(self, *a, **k)))
    return model, blocks


def test_what_every_block_keeps_for_itself_is_counted_for_every_block(monkeypatch):
    kept = []

    def keep(block, result):
        kept.append(torch.empty(2**20, dtype=torch.uint8, device="meta"))
        return result

    plain = probed(*on_meta())
    model, blocks = changed(monkeypatch, keep)
    deduplicator = BlockDeduplicator(blocks, model.config)
    runs = count_runs([block.mlp for block in blocks])
    result = probed(model, blocks, deduplicator)

    assert deduplicator.has_duplicates
    assert runs == list(range(6)) * PASSES
    assert result.activations - plain.activations >= 5 * 2**20


def test_blocks_that_are_alike_and_do_different_things_are_all_run(monkeypatch):
    turns = []

    def odd_ones_take_more(block, result):
        turns.append(block)
        if len(turns) % 2:
            torch.empty(2**20, dtype=torch.uint8, device="meta")
        return result

    model, blocks = changed(monkeypatch, odd_ones_take_more)
    runs = count_runs([block.mlp for block in blocks])
    del runs[:]
    deduplicator = BlockDeduplicator(on_meta()[1], model.config)
    probed(model, blocks, deduplicator)

    assert runs == list(range(6)) * PASSES


SHARING = [
    RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=6),  # one list of states for all
    Gemma3nTextConfig(  # parts of one tensor
        vocab_size=64,
        hidden_size=32,
        intermediate_size=[48] * 6,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention"] * 6,
        vocab_size_per_layer_input=64,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 6,
    ),
]


@pytest.mark.parametrize("config", SHARING, ids=lambda config: config.model_type)
def test_blocks_that_are_given_parts_of_one_thing_are_repeated(config):
    model, blocks = on_meta(config)
    deduplicator = BlockDeduplicator(blocks, model.config)
    whole = probed(model, blocks, max_model_len=16)
    runs = count_runs([next(block.children()) for block in blocks])

    assert probed(model, blocks, deduplicator, max_model_len=16) == whole
    assert len(set(runs)) <= 3


def test_a_block_that_returns_what_it_was_given_takes_nothing(monkeypatch):
    model, blocks = on_meta()
    monkeypatch.setattr(type(blocks[0]), "forward", lambda self, hidden_states, **_: hidden_states)
    deduplicator = BlockDeduplicator(blocks, model.config)

    assert deduplicator.has_duplicates
    assert probe(model, blocks, deduplicator=deduplicator, **SIZES[0]) == probe(
        model, blocks, **SIZES[0]
    )


def test_a_model_that_needs_all_its_blocks_run_is_run_whole(monkeypatch):
    model, blocks = on_meta()
    whole = measure_footprint(model, max_model_len=64, prefill_chunk=16)
    ran = []
    kind = type(blocks[0])
    forward, top = kind.forward, type(model).forward

    def note(self, *args, **kwargs):
        ran.append(self)
        return forward(self, *args, **kwargs)

    @functools.wraps(top)
    def look(self, *args, **kwargs):
        ran.clear()
        result = top(self, *args, **kwargs)
        return result if len(ran) == len(blocks) else ran[len(blocks)]

    monkeypatch.setattr(kind, "forward", note)
    monkeypatch.setattr(type(model), "forward", look)
    footprint = measure_footprint(model, max_model_len=64, prefill_chunk=16)

    assert footprint.probed
    assert footprint.by_block
    assert footprint == whole


def test_the_blocks_are_themselves_again_after_a_pass_that_fails():
    model, blocks = on_meta()
    deduplicator = BlockDeduplicator(blocks, model.config)
    model.lm_head.forward = None

    assert not probe(model, blocks, deduplicator=deduplicator, **SIZES[0]).measured
    assert not any("forward" in vars(block) for block in blocks)


def test_the_passes_of_a_large_model_run_few_blocks_and_give_the_same():
    model, blocks = on_meta(
        LlamaConfig(
            vocab_size=32_000,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=40,
            num_attention_heads=16,
            num_key_value_heads=4,
        ),
        "bfloat16",
    )
    sizes = {"max_model_len": 2048, "chunk": 512, "rows": 8}
    whole = probed(model, blocks, **sizes)

    assert probed(model, blocks, BlockDeduplicator(blocks, model.config), **sizes) == whole
