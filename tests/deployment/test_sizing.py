"""What serving a planned model needs, in numbers."""

from __future__ import annotations

import math
import os

import pytest

from predictor.deployment.sizing import FILESYSTEM_BYTES, FILESYSTEM_SHARE
from predictor.errors import ConfigurationError
from predictor.pod.resources import PodResources
from tests.deployment.deployments import GIB, RESIDENT, asked, resources
from tests.placement.small import footprint
from tests.volumes import small_volume


def test_blocks_that_are_read_in_place_get_no_claim():
    assert asked(resources(60, memory=16, disk=None)).claim is None


@pytest.mark.parametrize(
    ("stored", "claim"), [(None, 56), ("float32", 56), ("bfloat16", 28), ("float64", 112)]
)
def test_the_claim_of_a_model_on_the_hub_holds_the_download(stored, claim):
    """54 GiB of weights in float32, with what ext4 keeps: 55.7 GiB."""
    model = footprint(embeddings=6 * 1024, head=8 * 1024, block=10 * 1024)
    large = resources(60_000, 60_000, memory=1024)
    found = asked(large, model=model, flags={"model_id": "org/x"}, stored_dtype=stored)

    assert found.claim == claim * GIB


def test_what_the_chart_makes_itself_is_no_setting():
    flags = {
        "model_name": "bloom",
        "offload_folder": "/scratch",
        "host": "127.0.0.1",
        "http_port": "9000",
        "grpc_port": "9001",
        "enable_grpc": "false",
    }

    assert asked(RESIDENT, flags=flags).settings == {"enable_grpc": False}


def test_settings_of_the_environment_count_and_defaults_do_not():
    found = asked(RESIDENT, environ={"PREDICTOR_MEMORY_RESERVE": "268435456"})

    assert found.settings == {"memory_reserve": "256Mi"}


def test_a_setup_config_beside_the_model_goes_with_the_model(tmp_path):
    (tmp_path / "setup_config.json").write_text('{"max_length": 80}')
    flags = {"model_dir": str(tmp_path), "dtype": "float16"}

    assert asked(RESIDENT, flags=flags).settings == {"dtype": "float16"}


@pytest.mark.parametrize(
    ("flags", "title"),
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
def test_the_title_is_a_name_that_kserve_takes(flags, title):
    assert asked(RESIDENT, flags=flags).title == title


@pytest.mark.parametrize(("headroom", "claim"), [("0", 11), ("0.05", 11), ("0.2", 13)])
def test_a_claim_is_larger_than_stated_where_that_would_not_hold_the_disk_tier(headroom, claim):
    """The last block has 10 GiB: 11, 11 and 13 GiB with what the headroom and ext4 keep."""
    model = footprint(block=10 * 1024)
    usable = 1 - float(headroom)
    large = resources(int(36 * 1024 / usable), memory=1024, disk=math.ceil(10 * GIB / usable))
    found = asked(large, model=model, flags={"memory_headroom": headroom})

    assert found.claim == claim * GIB


@pytest.mark.root
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 400])
def test_a_real_file_system_keeps_no_more_of_a_claim_than_is_counted(tmp_path, size):
    with small_volume(tmp_path, size * GIB) as place:
        stat = os.statvfs(place)
        free = stat.f_bavail * stat.f_frsize

    assert free >= size * GIB * (1 - FILESYSTEM_SHARE) - FILESYSTEM_BYTES


def test_the_processors_of_this_pod_are_asked_for_unless_others_are_stated():
    measured = PodResources(RESIDENT.accelerators, RESIDENT.memory, None, processors=12)

    assert asked(measured).processors == 12
    assert asked(measured, processors=3).processors == 3


@pytest.mark.parametrize("limit", [None, -512])
def test_without_a_memory_limit_there_is_nothing_to_ask_for(limit):
    with pytest.raises(ConfigurationError, match="state it with --memory"):
        asked(resources(200, memory=limit))
