"""`Cluster` with a scripted stand-in for `kubectl`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.cluster.kubectl import Cluster

CLUSTER = Cluster("/etc/kubeconfig", "here", "predictor:1")


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """Replace ``kubectl`` by a program; return a function that sets its Python code."""
    program = tmp_path / "kubectl"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("tests.cluster.kubectl.time.sleep", lambda seconds: None)

    def write(code: str) -> Path:
        program.write_text(f"#!{sys.executable}\nimport json, sys, pathlib\n{code}\n")
        program.chmod(0o755)
        return tmp_path

    return write


def pod(name, ready="True", **metadata):
    return {
        "metadata": {"name": name, **metadata},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


def test_every_call_names_cluster_and_namespace(kubectl):
    kubectl("print(sys.argv[1:])")

    assert CLUSTER.kubectl("get", "pods") == (
        "['--kubeconfig=/etc/kubeconfig', '--namespace=here', 'get', 'pods']\n"
    )


def test_a_failure_has_kubectls_message(kubectl):
    kubectl("sys.exit('Error from server (NotFound)')")

    with pytest.raises(AssertionError, match=r"get pod x: Error from server \(NotFound\)"):
        CLUSTER.kubectl("get", "pod", "x")


def test_objects_are_applied_as_one_list(kubectl):
    folder = kubectl("pathlib.Path(__file__).with_name('given').write_text(sys.stdin.read())")
    CLUSTER.apply([{"kind": "Pod"}, {"kind": "Service"}])

    given = json.loads((folder / "given").read_text())
    assert given["kind"] == "List"
    assert given["items"] == [{"kind": "Pod"}, {"kind": "Service"}]


def test_pods_that_are_being_deleted_do_not_count(kubectl):
    listed = {"items": [pod("old", deletionTimestamp="now"), pod("new")]}
    kubectl(f"print({json.dumps(listed)!r})")

    assert [one["metadata"]["name"] for one in CLUSTER.pods("app=x")] == ["new"]
    assert CLUSTER.ready_pod("app=x") == "new"


def test_a_pod_is_waited_for_until_it_is_there_alone_and_ready(kubectl):
    states = [[], [pod("one"), pod("two")], [pod("two", "False")], [pod("one")], [pod("two")]]
    answers = json.dumps([{"items": state} for state in states])
    kubectl(
        f"answers, count = json.loads({answers!r}), pathlib.Path(__file__).with_name('count')\n"
        "seen = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(seen + 1))\n"
        "print(json.dumps(answers[seen]))"
    )

    assert CLUSTER.ready_pod("app=x", other_than="one") == "two"


def test_a_timeout_shows_the_state_of_the_namespace(kubectl):
    kubectl("print('called', sys.argv[3])")

    with pytest.raises(AssertionError, match=r"(?s)waited 0\.1 s for rain:.*called logs"):
        CLUSTER.until(lambda: None, "rain", seconds=0.1)


def test_a_forwarded_port_is_read_from_what_kubectl_prints(kubectl):
    folder = kubectl(
        "import time, os\n"
        "pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
        "print('Forwarding from 127.0.0.1:40123 -> 8080', flush=True)\n"
        "time.sleep(60)"
    )

    with CLUSTER.forward("pod-1", 8080) as address:
        assert address == "127.0.0.1:40123"
        process = int((folder / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_port_that_cannot_be_forwarded_is_an_error(kubectl):
    kubectl("")

    with (
        pytest.raises(AssertionError, match="port-forward said ''"),
        CLUSTER.forward("pod-1", 8080),
    ):
        pass


def test_applied_objects_are_deleted_even_after_an_error(kubectl):
    folder = kubectl(
        "with pathlib.Path(__file__).with_name('calls').open('a') as f: "
        "f.write(sys.argv[3] + '\\n')"
    )

    with pytest.raises(ZeroDivisionError), CLUSTER.applied([{"kind": "Pod"}]):
        _ = 1 / 0
    assert (folder / "calls").read_text().split() == ["apply", "delete"]


def test_a_warning_of_the_api_server_is_a_failure(kubectl):
    kubectl("sys.exit('--warnings-as-errors' in sys.argv)")

    with pytest.raises(AssertionError):
        CLUSTER.apply([{"kind": "Pod"}])
