"""Read this process's own Pod from the API server: the only module that uses `kubernetes`.

The Pod is optional: without a token, permission or a reachable server the start continues with the
measured resources. So there is one attempt of two seconds and no retry. The client, whose import
takes half a second, is imported only after address, token and name are known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypedDict, cast

from predictor.pod.pod_spec import OwnPod, OwnPodUnknown, PodJson, describe
from predictor.quantity import parse_bytes

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_SECONDS = 2.0
"""Seconds for one request. A NetworkPolicy that drops packets must not hold up the start."""


class Response(Protocol):
    """The part of urllib3's response that is used."""

    @property
    def data(self) -> bytes:
        """The whole body."""


class ClaimStatus(TypedDict):
    """A PersistentVolumeClaim's ``status``."""

    capacity: dict[str, str]


class ClaimJson(TypedDict):
    """The part of a PersistentVolumeClaim that is used."""

    status: ClaimStatus


def read_own_pod(
    offload_folder: Path | None,
    *,
    environ: Mapping[str, str] = os.environ,
    service_account: Path = SERVICE_ACCOUNT,
    host: str | None = None,
) -> OwnPod:
    """Return the requests and limits of the own Pod, with the size of the offload folder's claim.

    Args:
        offload_folder: The offload folder, absolute and without symbolic links.
        environ: The environment: ``POD_NAME`` and ``POD_NAMESPACE`` (from the downward API),
            ``CONTAINER_NAME`` and the address of the API server.
        service_account: Folder of the service account's token, CA and namespace.
        host: URL of the API server; None takes the cluster's own.

    Raises:
        OwnPodUnknown: The Pod cannot be read; its text is one sentence for the log.
    """
    url = host or _in_cluster_url(environ)
    token = _account_file(service_account, "token")
    name, namespace = _identity(environ, service_account)
    from kubernetes import client

    # An empty proxy overrides the environment's: the API server is inside the cluster.
    configuration = client.Configuration(
        host=url, api_key={"BearerToken": f"Bearer {token}"}, proxy="", retries=False
    )
    configuration.ssl_ca_cert = str(service_account / "ca.crt")
    with client.ApiClient(configuration) as api:
        core = client.CoreV1Api(api)
        answer = _get(core.read_namespaced_pod, f"Pod {namespace}/{name}", name, namespace)
        pod = _describe(answer, environ.get("CONTAINER_NAME"), offload_folder)
        return _with_claim_size(pod, core.read_namespaced_persistent_volume_claim)


def _in_cluster_url(environ: Mapping[str, str]) -> str:
    address, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not address or not port:
        raise OwnPodUnknown(
            "This process runs in no Pod (KUBERNETES_SERVICE_HOST is not set), so only what can "
            "be measured is known."
        )
    return f"https://[{address}]:{port}" if ":" in address else f"https://{address}:{port}"


def _account_file(service_account: Path, name: str) -> str:
    try:
        return (service_account / name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise OwnPodUnknown(
            f"The own Pod cannot be read: no service account {name} is mounted at "
            f"{service_account} ({error.strerror}); set automountServiceAccountToken: true to "
            f"have the Pod's limits checked."
        ) from error


def _identity(environ: Mapping[str, str], service_account: Path) -> tuple[str, str]:
    name = environ.get("POD_NAME") or environ.get("HOSTNAME")
    if not name:
        raise OwnPodUnknown(
            "The own Pod cannot be read: its name is unknown; set POD_NAME from the field "
            "metadata.name (downward API)."
        )
    return name, environ.get("POD_NAMESPACE") or _account_file(service_account, "namespace")


def _get(method: Callable[..., Response], subject: str, name: str, namespace: str) -> object:
    """Return the JSON of one GET request.

    The client does not parse it, because its models refuse answers of newer API servers.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        response = method(name, namespace, _preload_content=False, _request_timeout=TIMEOUT_SECONDS)
        return cast(object, json.loads(response.data))
    except (ApiException, HTTPError, OSError) as error:
        reason = _status_reason(getattr(error, "status", 0)) or _no_answer(error)
        raise OwnPodUnknown(f"{subject} cannot be read: {reason}.") from error
    except ValueError as error:
        raise OwnPodUnknown(f"{subject} cannot be read: the answer is not JSON.") from error


def _no_answer(error: Exception) -> str:
    return (
        f"the API server gives no answer within {TIMEOUT_SECONDS:g} s ({type(error).__name__}); "
        f"a NetworkPolicy may be in the way"
    )


def _status_reason(status: int) -> str:
    """Return the reason for an HTTP status; empty for 0, the client's status without a response."""
    if status in (401, 403):
        return (
            f"the API server refuses ({status}); give the service account a Role with get on "
            f"pods and persistentvolumeclaims"
        )
    if status == 404:
        return "there is none of this name (404); set POD_NAME and POD_NAMESPACE (downward API)"
    return f"the API server answers {status}" if status else ""


def _describe(answer: object, container: str | None, folder: Path | None) -> OwnPod:
    try:
        return describe(cast(PodJson, answer), container, folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OwnPodUnknown(
            f"The own Pod cannot be read: the answer is not what a Pod looks like ({error!r})."
        ) from error


def _with_claim_size(pod: OwnPod, read_claim: Callable[..., Response]) -> OwnPod:
    """Return the Pod with its claim's size, or with a note on why the size is unknown."""
    if pod.offload is None or pod.offload.claim is None:
        return pod
    subject = f"PersistentVolumeClaim {pod.namespace}/{pod.offload.claim}"
    try:
        size = _capacity(_get(read_claim, subject, pod.offload.claim, pod.namespace), subject)
    except OwnPodUnknown as unknown:
        return replace(pod, notes=(*pod.notes, str(unknown)))
    return replace(pod, offload=replace(pod.offload, size=size))


def _capacity(answer: object, subject: str) -> int:
    try:
        return parse_bytes(cast(ClaimJson, answer)["status"]["capacity"]["storage"])
    except (KeyError, TypeError, ValueError) as error:
        raise OwnPodUnknown(f"{subject} states no capacity, so its size is unknown.") from error
