"""The requirements of a planned model, in numbers."""

from __future__ import annotations

import math
import os

import pytest

from predictor.deployment.sizing import FILESYSTEM_BYTES, FILESYSTEM_SHARE
from predictor.errors import ConfigurationError
from predictor.pod.resources import PodResources
from tests.deployment.deployments import GIB, RESIDENT, requirements_of, resources
from tests.placement.small import footprint
from tests.volumes import small_volume


def test_blocks_that_are_read_in_place_get_no_claim():
    assert requirements_of(resources(60, memory=16, disk=None)).claim is None


@pytest.mark.parametrize(
    ("stored", "claim"), [(None, 56), ("float32", 56), ("bfloat16", 28), ("float64", 112)]
)
def test_the_claim_of_a_model_on_the_hub_holds_the_download(stored, claim):
    """The weights take 54 GiB in float32; 55.7 GiB with the part that ext4 keeps."""
    model = footprint(embeddings=6 * 1024, head=8 * 1024, block=10 * 1024)
    large = resources(60_000, 60_000, memory=1024)
    requirements = requirements_of(
        large, model=model, flags={"model_id": "org/x"}, stored_dtype=stored
    )

    assert requirements.claim == claim * GIB


def test_experts_are_on_the_volume_where_every_dense_part_stays_in_memory():
    flags = {"expert_slots": "auto"}
    mixture = requirements_of(
        resources(memory=200, disk=GIB), model=footprint(experts=8), flags=flags
    )

    assert mixture.claim == GIB
    assert mixture.settings == flags


def test_settings_that_the_chart_sets_itself_are_left_out():
    flags = {
        "model_name": "bloom",
        "offload_folder": "/scratch",
        "host": "127.0.0.1",
        "http_port": "9000",
        "grpc_port": "9001",
        "enable_grpc": "false",
    }

    assert requirements_of(RESIDENT, flags=flags).settings == {"enable_grpc": False}


def test_settings_of_the_environment_count_and_defaults_do_not():
    requirements = requirements_of(RESIDENT, environ={"PREDICTOR_MEMORY_RESERVE": "268435456"})

    assert requirements.settings == {"memory_reserve": "256Mi"}


def test_a_setup_config_beside_the_model_goes_with_the_model(tmp_path):
    (tmp_path / "setup_config.json").write_text('{"max_length": 80}')
    flags = {"model_dir": str(tmp_path), "dtype": "float16"}

    assert requirements_of(RESIDENT, flags=flags).settings == {"dtype": "float16"}


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"model_name": "Bloom_176B"}, "bloom-176b"),
        ({"model_id": "org/Llama-3.1-70B"}, "llama-3-1-70b"),
        ({"model_dir": "models/bloom-1.7b"}, "bloom-1-7b"),
        ({"model_dir": "models/bloom/config.json"}, "bloom"),
        ({"model_dir": "models/bloom-176b.json"}, "bloom-176b"),
        ({"model_dir": "models/7b"}, "model-7b"),
        ({"model_dir": "."}, "model"),
        ({"model_name": "x" * 39 + "-y"}, "x" * 39),
    ],
)
def test_the_resource_name_is_one_that_kserve_accepts(flags, name):
    assert requirements_of(RESIDENT, flags=flags).resource_name == name


@pytest.mark.parametrize(("headroom", "claim"), [("0", 11), ("0.05", 11), ("0.2", 13)])
def test_a_claim_is_larger_than_stated_if_that_would_not_hold_the_disk_tier(headroom, claim):
    """The last block has 10 GiB: 11, 11 and 13 GiB with the parts of the headroom and ext4."""
    model = footprint(block=10 * 1024)
    usable = 1 - float(headroom)
    large = resources(int(36 * 1024 / usable), memory=1024, disk=math.ceil(10 * GIB / usable))
    requirements = requirements_of(large, model=model, flags={"memory_headroom": headroom})

    assert requirements.claim == claim * GIB


@pytest.mark.root
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 400])
def test_a_real_file_system_keeps_no_more_of_a_claim_than_is_counted(tmp_path, size):
    with small_volume(tmp_path, size * GIB) as place:
        stat = os.statvfs(place)
        free = stat.f_bavail * stat.f_frsize

    assert free >= size * GIB * (1 - FILESYSTEM_SHARE) - FILESYSTEM_BYTES


def test_this_pods_processors_are_requested_unless_others_are_stated():
    measured = PodResources(RESIDENT.accelerators, RESIDENT.memory, None, processors=12)

    assert requirements_of(measured).processors == 12
    assert requirements_of(measured, processors=3).processors == 3


@pytest.mark.parametrize("limit", [None, -608])
def test_without_a_memory_limit_there_is_no_deployment(limit):
    with pytest.raises(ConfigurationError, match="state it with --memory"):
        requirements_of(resources(200, memory=limit))
