"""Against a loopback server that answers as the API server does."""

import socket
import time
from pathlib import Path

import pytest

from predictor.pod.own_pod import TIMEOUT_SECONDS, read_own_pod
from predictor.pod.pod_spec import OwnPodUnknown
from tests.pod.pods import make_container, make_pod

GIB = 1 << 30
FOLDER = Path("/mnt/offload")
POD_PATH = "/api/v1/namespaces/models/pods/bloom-0"
CLAIM_PATH = "/api/v1/namespaces/models/persistentvolumeclaims/claim"


def _read(server, folder=FOLDER, **environ):
    return read_own_pod(
        folder,
        environ={**server.environ, **environ},
        service_account=server.service_account,
        host=server.url,
    )


def _unknown(server, **environ) -> str:
    with pytest.raises(OwnPodUnknown) as caught:
        _read(server, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def claimed(api_server):
    """The server with a Pod whose offload folder is on a claim."""
    container = make_container({"nvidia.com/gpu": "2"}, mounts={"/mnt/offload": "scratch"})
    claim = {"persistentVolumeClaim": {"claimName": "claim"}}
    api_server.add_pod(make_pod(container, scratch=claim))
    return api_server


def test_the_pod_and_its_claim_are_read_with_the_service_accounts_token(claimed):
    claimed.add_claim("claim", "100Gi")
    pod = _read(claimed)
    assert [(request.resource, request.count) for request in pod.gpus] == [("nvidia.com/gpu", 2)]
    assert (pod.offload.claim, pod.offload.size) == ("claim", 100 * GIB)
    assert pod.notes == ()
    assert claimed.requests == [(POD_PATH, "Bearer the-token"), (CLAIM_PATH, "Bearer the-token")]


def test_without_an_offload_folder_no_claim_is_requested(claimed):
    assert _read(claimed, folder=None).offload is None
    assert [path for path, _ in claimed.requests] == [POD_PATH]


def test_a_claim_that_may_not_be_read_is_a_note_and_not_the_end(claimed):
    claimed.status[CLAIM_PATH] = 403
    pod = _read(claimed)
    assert (pod.offload.claim, pod.offload.size) == ("claim", None)
    assert pod.notes == (
        "PersistentVolumeClaim models/claim cannot be read: the API server refuses (403); give "
        "the service account a Role with get on pods and persistentvolumeclaims.",
    )


def test_a_claim_without_a_capacity_is_a_note(claimed):
    claimed.add_claim("claim", None)
    assert "states no capacity" in _read(claimed).notes[0]


def test_the_host_name_and_the_service_accounts_namespace_stand_in_for_the_downward_api(claimed):
    claimed.add_claim("claim", "1Gi")
    assert _read(claimed, POD_NAME="", POD_NAMESPACE="", HOSTNAME="bloom-0").name == "bloom-0"


def test_the_containers_name_is_taken_from_the_environment(claimed):
    assert "no container 'other'" in _unknown(claimed, CONTAINER_NAME="other")


def test_a_proxy_of_the_environment_is_not_used(claimed, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert _read(claimed, folder=None).name == "bloom-0"


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "refuses (401); give the service account a Role with get on pods"),
        (403, "refuses (403); give the service account a Role with get on pods"),
        (404, "none of this name (404); set POD_NAME and POD_NAMESPACE"),
        (500, "the API server answers 500"),
    ],
)
def test_a_refusal_is_one_sentence_that_says_what_to_change(claimed, status, sentence):
    claimed.status[POD_PATH] = status
    assert sentence in _unknown(claimed)
    assert len(claimed.requests) == 1  # no retry


def test_a_server_that_hangs_holds_up_the_start_for_two_seconds_only(claimed):
    claimed.hang = True
    start = time.monotonic()
    assert "no answer within 2 s (ReadTimeoutError)" in _unknown(claimed)
    assert TIMEOUT_SECONDS <= time.monotonic() - start < 2 * TIMEOUT_SECONDS


def test_a_port_where_nobody_listens_is_reported_at_once(claimed):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        claimed.url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert "NetworkPolicy may be in the way" in _unknown(claimed)


def test_an_unusable_certificate_authority_is_reported_at_once(claimed):
    claimed.url = claimed.url.replace("http:", "https:")
    assert "gives no answer" in _unknown(claimed)
    (claimed.service_account / "ca.crt").write_text("no certificate")
    assert "gives no answer" in _unknown(claimed)


@pytest.mark.parametrize("body", [b"<html>", b"\xff", b"[]", b"{}", b'{"spec": {"containers": 3}}'])
def test_an_answer_that_is_no_pod_is_reported(claimed, body):
    claimed.objects[POD_PATH] = body
    assert "cannot be read" in _unknown(claimed)


def test_a_quantity_that_makes_no_sense_is_reported(claimed):
    claimed.add_pod(make_pod(make_container({"memory": "much"})))
    assert "'much' is no amount of memory" in _unknown(claimed)


def test_without_a_token_it_says_how_to_have_one(claimed):
    (claimed.service_account / "token").unlink()
    assert "set automountServiceAccountToken: true" in _unknown(claimed)
    assert claimed.requests == []


def test_without_a_name_it_says_how_to_have_one(claimed):
    assert "set POD_NAME from the field metadata.name" in _unknown(claimed, POD_NAME="")


def test_outside_a_cluster_it_says_so(tmp_path):
    with pytest.raises(OwnPodUnknown, match="This process runs in no Pod"):
        read_own_pod(None, environ={"HOSTNAME": "laptop"}, service_account=tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_clusters_own_address_is_called_over_tls(claimed, address):
    port = claimed.url.rpartition(":")[2]  # answers, but speaks no TLS
    cluster = {"KUBERNETES_SERVICE_HOST": address, "KUBERNETES_SERVICE_PORT": port}
    with pytest.raises(OwnPodUnknown, match=r"gives no answer .*\((?!LocationParseError)"):
        read_own_pod(
            None,
            environ={**claimed.environ, **cluster},
            service_account=claimed.service_account,
        )
    assert claimed.requests == []
