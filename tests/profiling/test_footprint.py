"""What models need, against the same models with real weights on the CPU."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate.utils import check_device_map
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BloomConfig, Zamba2Config

from predictor.errors import ConfigurationError
from predictor.placement.plan import PlacementOptions
from predictor.placement.planner import plan
from predictor.placement.units import Experts, PlacementUnit
from predictor.profiling.blocks import find_blocks
from predictor.profiling.footprint import build_on_meta, measure_footprint
from tests.checkpoints import CONFIGS
from tests.mixture.families import FAMILIES, family_config
from tests.placement.models import ARCHITECTURES, measured, real_model
from tests.placement.small import pod

PARTLY_TIED = BertConfig(
    vocab_size=264,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    is_decoder=True,
)
"""Its head is tied to the embeddings and has weights of its own besides."""

TIED_BLOCKS = Zamba2Config(
    vocab_size=264,
    hidden_size=64,
    num_hidden_layers=6,
    layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "mamba", "hybrid"],
    num_attention_heads=4,
    num_key_value_heads=4,
    attention_head_dim=32,
    intermediate_size=96,
    mamba_d_state=16,
    mamba_headdim=16,
    n_mamba_heads=8,
    num_mem_blocks=1,
    mamba_ngroups=1,
    use_mem_rope=True,
)
"""Some of its blocks share an attention block."""


_MIXTURE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 264}
WHOLE_MIXTURES = {
    "llama4": AutoConfig.for_model(
        "llama4_text",
        **_MIXTURE,
        intermediate_size_mlp=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        interleave_moe_layer_step=1,
    ),
    "jetmoe": AutoConfig.for_model(
        "jetmoe", **_MIXTURE, num_local_experts=4, num_key_value_heads=2, kv_channels=16
    ),
}
"""Mixtures that do not go through transformers' experts interface."""


def stored_bytes(model):
    """Bytes of each different tensor that a checkpoint of a real model holds."""
    tensors = {t.data_ptr(): t.nbytes for t in model.state_dict().values() if t.numel()}
    return sum(tensors.values())


def covering(name, keys):
    return [key for key in keys if name == key or name.startswith(f"{key}.") or key == ""]


def test_a_tiny_bloom_in_exact_numbers():
    # hidden 64, vocabulary 264, float32 (4 bytes a number)
    # a layer norm: 2 x 64 numbers = 512 B
    # embeddings, tied to the head: 264 x 64 numbers = 67,584 B
    # a block: two norms 256, query_key_value 64 x 192 + 192 = 12,480, dense 64 x 64 + 64 = 4,160,
    # up 64 x 256 + 256 = 16,640 (the largest module: 66,560 B), down 256 x 64 + 64 = 16,448;
    # together 49,984 numbers = 199,936 B
    # keys and values of a token in a block: 2 x 64 numbers = 512 B
    footprint = measured("bloom")

    assert tuple(replace(unit, modules=()) for unit in footprint.units) == (
        PlacementUnit(("transformer.word_embeddings_layernorm",), None, 512, 0, 512),
        PlacementUnit(("transformer.ln_f",), None, 512, 0, 512),
        PlacementUnit(("transformer.word_embeddings", "lm_head"), None, 67_584, 0, 67_584),
        *(
            PlacementUnit((f"transformer.h.{index}",), index, 199_936, 0, 66_560, kv_per_token=512)
            for index in range(6)
        ),
    )
    assert footprint.weights == 2 * 512 + 67_584 + 6 * 199_936
    assert footprint.kv_per_token == 6 * 512
    assert (footprint.architecture, footprint.dtype) == ("BloomForCausalLM", "float32")
    assert footprint.probed


def test_the_serving_dtype_decides_the_size():
    single, half = measured("llama"), measured("llama", dtype="bfloat16")

    assert half.weights * 2 == single.weights
    assert half.kv_per_token * 2 == single.kv_per_token
    assert half.dtype == "bfloat16"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_are_the_bytes_that_the_real_model_stores(name):
    assert measured(name).weights == stored_bytes(real_model(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_buffers_are_the_bytes_that_the_real_model_computes(name):
    model = real_model(name)
    computed = sum(b.nbytes for key, b in model.named_buffers() if key not in model.state_dict())

    assert sum(unit.buffers for unit in measured(name).units) == computed


@pytest.mark.parametrize("config", [PARTLY_TIED, TIED_BLOCKS], ids=["head", "blocks"])
def test_what_is_tied_in_part_is_counted_once_and_stays_together(config):
    footprint = measured(config)
    model = AutoModelForCausalLM.from_config(config).eval()
    home = {name: unit for unit in footprint.units for name in unit.names}

    assert footprint.weights == stored_bytes(model)
    for names in tied_names(model):
        assert len({home[covering(name, home)[0]] for name in names}) == 1


def tied_names(model):
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [same for same in names.values() if len(same) > 1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_belongs_to_exactly_one_unit(name):
    keys = [key for unit in measured(name).units for key in unit.names]
    model = real_model(name)
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]

    assert len(keys) == len(set(keys))
    assert all(len(covering(tensor, keys)) == 1 for tensor, _ in tensors)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_accelerate_accepts_the_device_map(name):
    footprint = measured(name)
    whole = sum(unit.weights for unit in footprint.units) // 1024**2
    placement = plan(footprint, pod(1, 1, memory=whole + 1), PlacementOptions(headroom=0))

    check_device_map(build_on_meta(ARCHITECTURES[name], "float32"), placement.device_map)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_come_last_and_in_order_and_the_rest_smallest_first(name):
    units = measured(name).units
    rest = [unit for unit in units if unit.block is None]
    blocks = units[len(rest) :]

    assert [unit.block for unit in blocks] == list(range(len(blocks)))
    assert [unit.names[0].rpartition(".")[2] for unit in blocks] == [
        str(index) for index in range(len(blocks))
    ]
    assert [unit.weights for unit in rest] == sorted(unit.weights for unit in rest)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_modules_are_no_larger_than_the_largest_that_reads_weights(name):
    model = real_model(name)

    for are_blocks in (False, True):
        units = [unit for unit in measured(name).units if (unit.block is not None) == are_blocks]
        parts = [part for x in units for key in x.names for part in _modules_of(model, key)]
        own = [sum(p.nbytes for p in part.parameters(recurse=False)) for part in parts]
        assert max(unit.largest_module for unit in units) == max(own)
        for unit in units:
            held = {key for module in unit.modules for key in _weights_of(model, module)}
            held |= set(unit.fixed_names)
            assert held == {key for x in unit.names for key in _weights_of(model, x)}


def _modules_of(model, name):
    return model.get_submodule(name).modules()


def _weights_of(model, name):
    named = model.get_submodule(name).named_parameters(prefix=name, remove_duplicate=False)
    return [key for key, _ in named]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("mixtral", "safetensors", True),
        ("llama", "safetensors", False),
        ("bloom", "safetensors", False),
        ("llama", "pickle", True),
    ],
)
def test_pickles_and_fused_experts_are_rewritten(name, kind, expected):
    model = build_on_meta(CONFIGS[name], "float32")
    footprint = measure_footprint(model, max_model_len=8, prefill_chunk=8, stored_kind=kind)

    assert footprint.needs_conversion is expected


@pytest.mark.parametrize(
    ("stored", "expected"), [("float32", False), ("bfloat16", True), (None, False)]
)
def test_a_cast_is_known_from_the_dtype_on_disk(stored, expected):
    model = build_on_meta(CONFIGS["bloom"], "float32")
    footprint = measure_footprint(model, max_model_len=8, prefill_chunk=8, stored_dtype=stored)

    assert footprint.needs_cast is expected


def test_blocks_are_found_in_a_model_that_names_none(monkeypatch):
    monkeypatch.setattr("predictor.profiling.blocks.unsplit_classes", lambda model: frozenset())
    model = build_on_meta(CONFIGS["gpt2"], "float32")

    assert find_blocks(model) == tuple(f"transformer.h.{index}" for index in range(6))


def test_a_config_that_cannot_be_built_is_refused_in_one_sentence():
    config = BloomConfig(vocab_size=264, hidden_size=66, n_layer=1, n_head=4)  # 66 is no 4 x n

    with pytest.raises(ConfigurationError) as raised:
        build_on_meta(config, "float32")

    assert str(raised.value).startswith(
        "A 'bloom' model cannot be built as a causal language model"
    )
    assert "\n" not in str(raised.value)


OWN_CODE = """
import torch
from transformers import LlamaForCausalLM
class MineForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        {line}
"""


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (None, "modeling_mine.py"),
        ("def", "invalid syntax"),
        (OWN_CODE.format(line="raise RuntimeError('no kernel of mine')"), "no kernel of mine"),
        (OWN_CODE.format(line="self.scale = torch.ones(1).item()"), "meta"),
    ],
)
def test_code_of_a_model_that_cannot_build_it_is_refused_in_one_sentence(tmp_path, code, word):
    own = {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    (tmp_path / "config.json").write_text(
        json.dumps({**CONFIGS["llama"].to_dict(), "auto_map": own})
    )
    if code is not None:
        (tmp_path / "modeling_mine.py").write_text(code)
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)

    with pytest.raises(ConfigurationError, match="cannot be built as a causal") as raised:
        build_on_meta(config, "float32", trust_remote_code=True)

    assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_on_meta_has_no_weights_in_memory():
    model = build_on_meta(CONFIGS["llama"], "bfloat16")

    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training


# Experts


MIXTRAL_PARTS = (
    *(f"self_attn.{letter}_proj" for letter in "qkvo"),
    *("mlp", "input_layernorm", "post_attention_layernorm"),
)


def test_the_experts_of_a_block_are_counted_apart_from_its_dense_part():
    # bfloat16; four experts of 2 x 96 x 64 and 64 x 96 numbers, 36,864 B each, which are 9 pages
    # attention: 64 x (64 + 32 + 32 + 64) numbers; two norms of 64; a router of 4 x 64
    model = build_on_meta(CONFIGS["mixtral"], "bfloat16")
    footprint = measure_footprint(model, max_model_len=8, prefill_chunk=8)

    block = next(unit for unit in footprint.units if unit.block == 1)
    assert block.experts == Experts(
        *("model.layers.1.mlp.experts", 4, 2, 36_864, 4 * 36_864),
        modules=tuple(f"model.layers.1.{name}" for name in MIXTRAL_PARTS),
        largest_module=64 * 64 * 2,
    )
    assert block.dense_part().weights == 2 * (64 * 192 + 2 * 64 + 4 * 64)
    assert block.weights == block.dense_part().weights + 4 * 36_864
    apart = footprint.with_experts_apart()
    assert len(apart.experts_apart) == 4
    assert apart.weights == footprint.weights
    assert footprint.whole_mixtures == 0


@pytest.mark.parametrize(
    ("config", "kind"),
    [("mixtral", "pickle"), ("llama4", "safetensors"), ("jetmoe", "safetensors")],
)
def test_experts_that_cannot_be_read_one_by_one_are_part_of_their_blocks(config, kind):
    model = build_on_meta((CONFIGS | WHOLE_MIXTURES)[config], "float32")
    footprint = measure_footprint(model, max_model_len=8, prefill_chunk=8, stored_kind=kind)

    assert {unit.experts for unit in footprint.units} == {None}
    assert footprint.whole_mixtures == 4
    assert footprint.with_experts_apart() is None


def test_a_dense_model_has_no_mixtures():
    assert measured("llama").whole_mixtures == 0
    assert measured("llama").with_experts_apart() is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_placed_with_its_experts_apart(family):
    footprint = measured(family_config(family), dtype="bfloat16")
    apart = footprint.with_experts_apart()

    assert footprint.by_block
    assert footprint.probed
    assert apart.weights == footprint.weights
    assert all(unit.weights > 0 for unit in apart.units if unit.is_block)
