"""A claim that is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster import objects
from tests.cluster.conftest import GREEDY, ISVC, await_service, replies
from tests.cluster.kubectl import Cluster, Object
from tests.cluster.node import Node, small_volume
from tests.server.process import serve
from tests.server.test_clients import over_v1

pytestmark = pytest.mark.cluster

DEMO_MODEL = objects.ROOT / "examples" / "demo-model"
SMALL_BYTES = "1m"
"""Less than the demo's store needs."""


@pytest.fixture
def full(cluster: Cluster, node: Node, tmp_path: Path) -> Iterator[Callable[..., list[Object]]]:
    """Give a function that applies the demo, under a name, with a claim of 1 MiB."""
    with ExitStack() as stack:

        def apply(name: str, *, hub: str | None = None, **settings: str) -> list[Object]:
            folder = stack.enter_context(small_volume(tmp_path / name, SMALL_BYTES))
            made = on_volume(objects.demo(name, **settings), cluster.namespace, name, folder)
            if hub is not None:
                from_hub(made, hub)
            stack.enter_context(cluster.applied(made))
            return made

        yield apply


def on_volume(made: list[Object], namespace: str, name: str, folder: Path) -> list[Object]:
    """Return a service's objects with a folder of the node as its claim's volume."""
    (claim,) = (obj for obj in made if obj["kind"] == "PersistentVolumeClaim")
    volume = objects.volume(f"{namespace}-{name}", "1Gi", folder, namespace, f"{name}-offload")
    claim["spec"] |= {"storageClassName": "", "volumeName": volume["metadata"]["name"]}
    return [volume, *made]


def from_hub(made: list[Object], hub: str) -> None:
    """Make the predictor download its model to its claim."""
    model = objects.service(made)["spec"]["predictor"]["model"]
    del model["args"]
    environ = {
        "PREDICTOR_MODEL_ID": "demo/model",
        "HF_HOME": "/offload/huggingface",
        "HF_ENDPOINT": hub,
        "HF_HUB_DISABLE_XET": "1",
    }
    model["env"] += [{"name": name, "value": value} for name, value in environ.items()]


def test_a_full_claim_is_reported_and_the_model_is_read_in_place(
    cluster: Cluster, full: Callable[..., list[Object]]
) -> None:
    full("short", dtype="float32", max_memory='{"cpu":"12MiB"}')
    pod = await_service(cluster, "short")
    with serve(DEMO_MODEL, "--dtype=float32", "--max_model_len=256", name="demo") as server:
        expected = over_v1(server.await_ready(), **GREEDY)

    assert "lacks space: the store takes" in cluster.log(pod)
    assert replies(cluster, pod, "short") == expected


def test_a_full_claim_ends_a_start_that_requires_a_store(
    cluster: Cluster, full: Callable[..., list[Object]]
) -> None:
    full("shut", dtype="float32", max_memory='{"cpu":"12MiB"}', offload_store="always")
    sentence = cluster.until(lambda: cluster.why_it_ended(f"{ISVC}=shut"), "why it ended", 120)

    assert "more space on the offload volume" in sentence


def test_a_full_claim_ends_a_download_with_a_sentence(
    cluster: Cluster, full: Callable[..., list[Object]], hub: str
) -> None:
    full("stuck", hub=hub)
    sentence = cluster.until(lambda: cluster.why_it_ended(f"{ISVC}=stuck"), "why it ended", 120)

    assert "The offload volume has" in sentence
    assert "give it more space" in sentence
    assert sentence.strip().count("\n") == 0
