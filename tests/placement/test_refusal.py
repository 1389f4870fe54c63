"""Why a model does not fit, and that what is proposed is true."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from predictor.errors import DoesNotFit
from predictor.placement.plan import PlacementOptions
from predictor.placement.planner import plan
from predictor.pod.resources import PodResources
from predictor.quantity import parse_bytes
from tests.placement.small import MIB, footprint, pod

BARE = PlacementOptions(headroom=0.0)


def refused(model, resources, options):
    with pytest.raises(DoesNotFit) as raised:
        plan(model, resources, options)
    return raised.value


def fits(model, resources, options):
    try:
        plan(model, resources, options)
    except DoesNotFit:
        return False
    return True


AMOUNT = r"([\d.]+ \w*B)"


def apply(remedy, model, resources, options, less=0):
    """Does what a remedy says, or `less` (MiB, tokens or sequences) than that."""
    for part in remedy.split(" and "):
        if match := re.fullmatch(rf"{AMOUNT} more (.+)", part):
            amount = parse_bytes(match[1]) - less * MIB
            resources, options = _more(match[2], amount, resources, options)
        elif match := re.fullmatch(
            rf"{AMOUNT} instead of {AMOUNT} for '(\w+)' in max_memory", part
        ):
            target = parse_bytes(match[1]) - less * MIB
            options = replace(options, max_memory=options.max_memory | {match[3]: target})
        elif match := re.fullmatch(r"max_model_len (\d+) instead of \d+", part):
            model = replace(model, max_model_len=int(match[1]) + less)
        elif match := re.fullmatch(r"max_concurrency (\d+) instead of \d+", part):
            options = replace(options, max_concurrency=int(match[1]) + less)
        else:
            pytest.fail(f"no such remedy is known: {part!r}")
    return model, resources, options


def _more(what: str, amount: int, resources: PodResources, options: PlacementOptions):
    if what.startswith("GPU memory"):
        gpus = tuple(replace(gpu, free=gpu.free + amount) for gpu in resources.accelerators)
        return replace(resources, accelerators=gpus), options
    if what == "main memory":
        memory = replace(resources.memory, available=resources.memory.available + amount)
        return replace(resources, memory=memory), options
    assert what == "space on the offload volume (--offload_folder)"
    return resources, replace(options, disk=options.disk + amount)


CASES = {
    # 3 activations + 16 KV + 4 + 8 staged are 31 without a weight in main memory
    "memory": (footprint(), pod(memory=24), BARE),
    "memory with headroom": (
        footprint(),
        pod(memory=20),
        PlacementOptions(headroom=0.05, reserve=2 * MIB),
    ),
    "gpu and memory": (footprint(), pod(24, memory=24), BARE),
    "two gpus": (footprint(), pod(12, 12), PlacementOptions(headroom=0.05)),
    "disk": (footprint(), pod(memory=60), replace(BARE, disk=2 * MIB)),
    "disk and gpu": (footprint(), pod(40, memory=4), replace(BARE, disk=2 * MIB)),
    "cache": (footprint(max_model_len=1000), pod(memory=60), BARE),
    "sequences": (footprint(), pod(memory=60), replace(BARE, max_concurrency=7)),
    "max_memory": (footprint(), pod(memory=200), replace(BARE, max_memory={"cpu": 20 * MIB})),
    "max_memory and owned": (
        footprint(),
        pod(memory=22),
        replace(BARE, max_memory={"cpu": 20 * MIB}),
    ),
    "max_memory of two gpus": (
        footprint(),
        pod(100, 30),
        PlacementOptions(headroom=0.05, max_memory={"0": 12 * MIB, "1": 9 * MIB}),
    ),
    "large": (
        footprint(block=4000, kv=64, module=700, max_model_len=512),
        pod(24 * 1024, memory=900),
        PlacementOptions(headroom=0.05),
    ),
    "explicit": (
        footprint(),
        pod(30, memory=12),
        replace(BARE, device_map={"": "0", "blocks": "cpu"}),
    ),
    "explicit gpu": (footprint(), pod(60, memory=1), replace(BARE, device_map="cuda:0")),
    "explicit with max_memory": (
        footprint(),
        pod(60, memory=1),
        replace(BARE, device_map="cuda:0", max_memory={"0": 50 * MIB}),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_remedy_makes_it_fit_and_a_little_less_does_not(case):
    model, resources, options = CASES[case]
    error = refused(model, resources, options)

    assert error.remedies
    for remedy in error.remedies:
        assert fits(*apply(remedy, model, resources, options)), remedy
        tolerance = 1 if remedy.startswith("max_") else 2 + 0.02 * error.needed / MIB
        assert not fits(*apply(remedy, model, resources, options, less=tolerance)), remedy


@pytest.mark.parametrize("case", CASES)
def test_the_sentence_says_what_the_error_carries(case):
    error = refused(*CASES[case])
    text = str(error)

    assert text.startswith("Small in float32 does not fit: ")
    assert text.endswith(".")
    assert "\n" not in text
    assert error.needed > error.available
    assert all(remedy in text for remedy in error.remedies)


def test_the_whole_sentence():
    # 1 token each: 3 activations + 4 KV + 2 staged for blocks + 8 for the head = 17
    model = footprint(max_model_len=1)
    error = refused(model, pod(memory=10), BARE)

    assert str(error) == (
        "Small in float32 does not fit: main memory lacks 7.00 MiB (needs 17.00 MiB, can use "
        "10.00 MiB); it would fit with 7.00 MiB more main memory."
    )
    assert (error.tier, error.needed, error.available) == ("cpu", 17 * MIB, 10 * MIB)


@pytest.mark.parametrize(
    ("case", "tier", "count"),
    [
        # memory is one, a shorter context or fewer sequences one more where they are enough
        ("memory", "cpu", 1 + 1),
        ("gpu and memory", "gpu", 2 + 1),
        ("disk", "cpu", 2),
        ("cache", "cpu", 1 + 1),
        ("sequences", "cpu", 1 + 1),
        ("explicit gpu", "gpu", 1),
    ],
)
def test_the_fastest_tier_that_would_help_is_named_and_others_are_alternatives(case, tier, count):
    error = refused(*CASES[case])

    assert error.tier == tier
    assert len(error.remedies) == count


def test_a_stated_map_that_overfills_two_devices_needs_both():
    # GPU: 14 + 3 + 16 KV + 2 staged = 35 of 30; main memory: 40 of 12
    error = refused(*CASES["explicit"])

    assert error.remedies[0] == "5.00 MiB more GPU memory and 28.00 MiB more main memory"
    assert (error.tier, error.needed, error.available) == ("gpu", 35 * MIB, 30 * MIB)


def test_the_sentence_names_a_reserve_that_takes_all():
    error = refused(footprint(max_model_len=1), pod(memory=10), replace(BARE, reserve=12 * MIB))

    assert "needs 17.00 MiB, can use 0 B beside a reserve of 12.00 MiB)" in str(error)
    assert error.remedies == ("19.00 MiB more main memory",)


def test_a_max_memory_that_binds_is_to_be_changed():
    error = refused(*CASES["max_memory"])

    assert error.remedies[0] == "29.00 MiB instead of 20.00 MiB for 'cpu' in max_memory"


def test_a_max_memory_that_cannot_be_raised_far_enough_needs_more_memory_too():
    error = refused(*CASES["max_memory and owned"])

    assert error.remedies[0] == (
        "29.00 MiB instead of 20.00 MiB for 'cpu' in max_memory and 7.00 MiB more main memory"
    )


def test_a_refusal_of_a_large_model_is_found_quickly():
    """A hundred blocks on eight GPUs: some hundred plans are made to find the remedies."""
    model = footprint(blocks=100, block=4000, kv=4, module=1000, max_model_len=2048)

    error = refused(model, pod(*[1000] * 8, memory=900), PlacementOptions())

    assert error.tier == "gpu"
