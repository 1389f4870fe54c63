"""Which modules are experts, for every family whose tokens are checked, on the meta device."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from predictor.mixture.modules import ExpertsModule, find_experts, find_mixtures
from predictor.placement.buffers import count_staging_slots, slot_bytes, slot_offsets
from predictor.profiling.blocks import find_blocks
from predictor.profiling.footprint import build_on_meta
from predictor.profiling.meta_device import DeviceBehavior
from tests.mixture.families import EXPERTS, FAMILIES, ROUTED, family_config

DENSE_FIRST = ("deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe", "dots1")


def on_meta(name, **other):
    return build_on_meta(family_config(name, **other), "bfloat16")


def experts_called(model, modules):
    """Return the number of experts that each token chose, by experts module."""
    called = {}

    def record(name):
        def hook(module, args, kwargs):
            choices = args[1] if len(args) > 1 else kwargs["top_k_index"]
            called[name] = choices.shape[-1]

        return hook

    for experts in modules:
        module = model.get_submodule(experts.name)
        module.register_forward_pre_hook(record(experts.name), with_kwargs=True)
    with torch.no_grad(), DeviceBehavior():
        model(input_ids=torch.zeros(1, 5, dtype=torch.long, device="meta"), use_cache=False)
    return called


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_its_experts_found_and_as_many_routed_as_its_router_chooses(name):
    model = on_meta(name)
    blocks = find_blocks(model)

    experts = find_experts(model, blocks)

    assert list(experts) == list(blocks[1:] if name in DENSE_FIRST else blocks)
    assert {module.count for module in experts.values()} == {EXPERTS}
    called = experts_called(model, experts.values())
    assert {module.name: module.routed for module in experts.values()} == called
    other = {"hunyuan_v1_moe": {1, 2, 3, 4}, "phimoe": {2}}
    assert set(called.values()) == other.get(name, {ROUTED})
    assert find_mixtures(model, blocks) == tuple(experts)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_experts_are_all_weights_of_their_module(name):
    model = on_meta(name)

    for block, experts in find_experts(model, find_blocks(model)).items():
        module = model.get_submodule(experts.name)
        assert experts.name.startswith(f"{block}.")
        assert experts.parameters == tuple(key for key, _ in module.named_parameters())
        assert experts.weights == sum(tensor.nbytes for tensor in module.parameters())


def test_the_slices_of_an_expert_are_exact():
    # bfloat16: gate_up_proj (8, 2 * 96, 64) and down_proj (8, 64, 96)
    model = on_meta("mixtral")

    first = find_experts(model, ["model.layers.0"])["model.layers.0"]

    assert first == ExpertsModule(
        "model.layers.0.mlp.experts",
        8,
        3,
        ("gate_up_proj", "down_proj"),
        (2 * 96 * 64 * 2, 64 * 96 * 2),
    )
    assert first.weights == 8 * 36_864
    assert first.slot_bytes == 36_864  # nine pages


def test_biases_are_tensors_of_an_expert_too():
    first = next(iter(find_experts(on_meta("gpt_oss"), ["model.layers.0"]).values()))

    assert first.parameters == ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    assert first.slices == (2 * 96 * 64 * 2, 2 * 96 * 2, 96 * 64 * 2, 64 * 2)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("llama4_text", {"num_local_experts": 4, "interleave_moe_layer_step": 1}),
        ("jetmoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_mixtures_beside_the_interface_are_recognised_and_have_no_slots(name, other):
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 99}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **shape, **other))
    blocks = find_blocks(model)

    assert find_experts(model, blocks) == {}
    assert find_mixtures(model, blocks) == blocks


def test_a_dense_model_has_no_experts():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", num_hidden_layers=2))
    blocks = find_blocks(model)

    assert find_experts(model, blocks) == {}
    assert find_mixtures(model, blocks) == ()


def test_a_class_with_a_forward_of_its_own_does_not_ask_the_interface():
    model = on_meta("mixtral", num_hidden_layers=2)
    experts = model.get_submodule("model.layers.1.mlp.experts")
    own = {"forward": lambda self, states, *choice: states}
    experts.__class__ = type("OwnExperts", (type(experts),), own)

    assert list(find_experts(model, find_blocks(model))) == ["model.layers.0"]
    assert find_mixtures(model, find_blocks(model)) == find_blocks(model)


def test_tensors_begin_at_64_bytes_and_slots_are_whole_pages():
    assert slot_offsets((100, 64, 10)) == (0, 128, 192, 4096)
    assert slot_offsets((4096, 1)) == (0, 4096, 8192)
    assert slot_bytes(()) == 0


def test_there_are_two_staging_slots_or_as_many_as_32_mib_hold():
    assert count_staging_slots(128, 9 * 1024**2) == 4
    assert count_staging_slots(8, 352 * 1024**2) == 2
    assert count_staging_slots(16, 4096) == 16
