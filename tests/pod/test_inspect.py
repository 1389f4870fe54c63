"""The whole inspection, against a made-up host and a loopback API server."""

import subprocess
import sys
from pathlib import Path

import pytest

from predictor import pod as pod_package
from predictor.errors import ConfigurationError
from predictor.pod import Accelerator, inspect
from tests.pod.conftest import GIB, MIB
from tests.pod.pods import make_container, make_pod


@pytest.fixture
def read(host, api_server):
    """`read_resources` with every source replaced by the made-up host and server."""
    host.belongs_to("0::/")
    host.v2("", 8 * GIB, GIB)

    def call(folder=None, **options):
        sources = {
            "environ": api_server.environ,
            "cgroup_root": host.cgroup_root,
            "proc": host.proc,
            "service_account": api_server.service_account,
            "api_host": api_server.url,
        }
        return pod_package.read_resources(folder, **{**sources, **options})

    return call


@pytest.fixture
def cards(monkeypatch):
    """Set the devices that torch sees."""

    def see(count):
        visible = tuple(Accelerator(i, "cuda", "card", 80 * GIB, 70 * GIB) for i in range(count))
        monkeypatch.setattr(inspect, "read_accelerators", lambda: visible)

    see(0)
    return see


def test_importing_the_floor_loads_neither_torch_nor_the_kubernetes_client():
    code = "import sys, predictor.pod; print({'torch', 'kubernetes'} & set(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == "set()"


def test_everything_is_put_together(read, cards, api_server, tmp_path):
    cards(2)
    container = make_container(
        {"nvidia.com/gpu": "2", "memory": "8Gi"}, mounts={str(tmp_path): "s"}
    )
    claim = {"persistentVolumeClaim": {"claimName": "claim"}}
    api_server.add_pod(make_pod(container, s=claim))
    api_server.add_claim("claim", "10Mi")
    (tmp_path / "other").write_bytes(b"x" * 2 * MIB)
    resources = read(tmp_path / "offload", gpu_fraction=0.5)
    assert [card.free for card in resources.accelerators] == [40 * GIB] * 2
    assert (resources.memory.limit, resources.memory.available) == (8 * GIB, 7 * GIB)
    assert resources.volume.claim == "claim"
    assert 7 * MIB < resources.volume.available <= 8 * MIB
    assert resources.volume.writable
    assert resources.notes == ()


def test_an_unknown_pod_is_one_note_and_the_start_goes_on(read, cards):
    cards(1)
    resources = read()
    assert len(resources.accelerators) == 1
    assert resources.volume is None
    (note,) = resources.notes
    assert "Pod models/bloom-0 cannot be read: there is none of this name (404)" in note


def test_outside_a_cluster_this_very_machine_is_read(tmp_path):
    resources = pod_package.read_resources(tmp_path, environ={}, service_account=tmp_path)
    assert resources.memory.available > MIB
    assert resources.volume.available > 0
    assert "This process runs in no Pod" in resources.notes[0]


def test_missing_devices_end_the_start(read, cards, api_server):
    cards(1)
    api_server.add_pod(make_pod(make_container({"nvidia.com/gpu": "2"})))
    with pytest.raises(ConfigurationError, match=r"asks for 2 nvidia\.com/gpu and torch sees 1"):
        read()


def test_a_memory_limit_that_no_control_group_shows_is_taken_from_the_pod(
    read, cards, api_server, host
):
    host.v2("", "max", GIB)
    api_server.add_pod(make_pod(make_container({"memory": "8Gi"})))
    memory = read().memory
    assert (memory.limit, memory.available) == (8 * GIB, 8 * GIB - 100 * MIB)


def test_no_memory_limit_anywhere_is_noted(read, cards, api_server, host):
    host.v2("", "max", GIB)
    api_server.add_pod(make_pod(make_container()))
    assert "has no memory limit" in read().notes[0]


def test_an_offload_folder_in_memory_is_noted_and_has_no_more_than_memory_has(
    read, cards, host, tmp_path
):
    host.mounts(f"30 25 0:27 / {tmp_path} rw - tmpfs tmpfs rw")
    host.v2("", GIB, GIB - MIB)
    resources = read(tmp_path)
    assert resources.volume.available == MIB
    assert "is in memory (tmpfs)" in resources.notes[-1]


def test_an_offload_folder_that_cannot_be_written_is_noted(read, cards):
    resources = read(Path("/proc/offload"))
    assert not resources.volume.writable
    assert "The offload folder /proc/offload cannot be written." in resources.notes


def test_a_claim_mounted_by_sub_path_is_noted(read, cards, api_server, tmp_path):
    container = make_container({"memory": "8Gi"}, mounts={str(tmp_path): "s"})
    container["volumeMounts"][0]["subPath"] = "blocks"
    api_server.add_pod(make_pod(container, s={"persistentVolumeClaim": {"claimName": "claim"}}))
    api_server.add_claim("claim", "10Gi")
    assert "is mounted by subPath" in read(tmp_path).notes[0]
