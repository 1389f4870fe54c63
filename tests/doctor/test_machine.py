"""GPUs, memory, processors and shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from predictor.doctor import machine
from predictor.pod.resources import Accelerator
from tests.doctor.conftest import Surround, settings
from tests.pod.conftest import GIB, MIB, ApiServer, Host
from tests.pod.pods import make_container, make_pod

GPU = Accelerator(0, "cuda", "H100", 80 * GIB, 79 * GIB)


def in_pod(server: ApiServer, surround: Surround, *gpus: Accelerator) -> dict[str, str]:
    around = surround(
        environ=server.environ,
        service_account=server.service_account,
        api_host=server.url,
        accelerators=lambda: gpus,
    )
    return {check.name: check.state for check in machine.check_pod(settings(), around)}


@pytest.mark.parametrize(("gpus", "state"), [((GPU,), "ok"), ((), "failure")])
def test_gpus_that_the_pod_has_but_torch_does_not_see_are_a_failure(
    api_server: ApiServer, surround: Surround, gpus: tuple[Accelerator, ...], state: str
) -> None:
    api_server.add_pod(make_pod(make_container({"nvidia.com/gpu": "1"})))
    assert in_pod(api_server, surround, *gpus) == {"own Pod": "ok", "GPUs": state}


def test_a_pod_that_may_not_be_read_is_a_warning(api_server: ApiServer, surround: Surround) -> None:
    api_server.status["/api/v1/namespaces/models/pods/bloom-0"] = 403
    assert in_pod(api_server, surround) == {"own Pod": "warning", "GPUs": "skipped"}


def test_outside_of_a_cluster_there_is_no_pod_to_compare_with(surround: Surround) -> None:
    around = surround(accelerators=lambda: (GPU,))
    pod, gpus = machine.check_pod(settings(), around)
    assert (pod.state, gpus.state) == ("skipped", "ok")
    assert "H100 with 79.00 GiB free" in gpus.finding


@pytest.mark.parametrize(
    ("limit", "state", "finding"),
    [
        ("max", "warning", "There is no limit: 64.00 GiB may be taken"),
        (8 * GIB, "ok", "The limit is 8.00 GiB"),
        (300 * MIB, "failure", "The predictor's own processes take"),
    ],
)
def test_the_memory_limit_must_be_there_and_hold_the_server(
    host: Host, surround: Surround, limit: int | str, state: str, finding: str
) -> None:
    host.belongs_to("0::/")
    host.v2("", limit, 0)
    check = machine.check_memory(surround(proc=host.proc, cgroup_root=host.cgroup_root))
    assert check.state == state
    assert finding in check.finding
    assert bool(check.remedy) == (state != "ok")


def test_one_processor_is_a_warning(host: Host, surround: Surround) -> None:
    host.belongs_to("0::/")
    host.v2("", "max", 0)
    host.write("cgroup/cpu.max", "100000 100000")
    check = machine.check_processors(surround(proc=host.proc, cgroup_root=host.cgroup_root))
    assert (check.state, check.finding) == ("warning", "1 may be used.")


def test_shared_memory_that_is_not_there_is_a_failure(surround: Surround, tmp_path: Path) -> None:
    assert machine.check_shared_memory(surround()).state == "ok"
    missing = machine.check_shared_memory(surround(shared_memory=tmp_path / "shm"))
    assert missing.state == "failure"
    assert "scratch.shmSize" in missing.remedy
