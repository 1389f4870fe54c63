"""A real Prometheus that scrapes real servers under load: the dashboard's queries, the alerts."""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from helm import dashboard
from tests.deploy.helm import render
from tests.prometheus import Prometheus, Target, scraping
from tests.server.process import Served, serve

_SECONDS = 40
_POD = {"namespace": "default", "pod": "demo-predictor-1", "container": "kserve-container"}

KUBE_STATE = """\
kube_pod_container_status_restarts_total 1
kube_pod_container_status_last_terminated_exitcode 78
"""
"""Metrics of kube-state-metrics, which needs a cluster; their labels are the target's."""


class _KubeState(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(KUBE_STATE.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def kube_state() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _KubeState) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "{}:{}".format(*server.server_address[:2])
        server.shutdown()


@contextlib.contextmanager
def load(*servers: Served) -> Iterator[None]:
    """Send requests to servers, one after the other to each, as long as the context is open."""
    over = threading.Event()

    def send(server: Served) -> None:
        while not over.is_set():
            server.predict("8 bytes.", max_new_tokens=4)
            httpx.post(f"{server.url}/v1/models/{server.name}:predict", json={}, timeout=30)

    threads = [threading.Thread(target=send, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def rules() -> dict[str, Any]:
    """Return the groups of rules that the chart renders for a model of the name `m`."""
    made = render({"prometheusRule": {"enabled": True}, "model": {"name": "m"}})
    (spec,) = (obj["spec"] for obj in made if obj["kind"] == "PrometheusRule")
    groups: dict[str, Any] = spec
    return groups


@pytest.fixture(scope="module")
def prometheus(
    served: Served, mixture: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """One that scrapes a BLOOM with blocks on disk and a mixture with experts on disk."""
    flags = ("--max_model_len=64", "--prefill_chunk=16", "--max_concurrency=1")
    with (
        serve(mixture, '--max_memory={"cpu": "16MiB"}', *flags, name="mixture") as experts,
        kube_state() as state,
    ):
        experts.await_ready()
        addresses = [server.url.removeprefix("http://") for server in (served, experts)]
        targets = [Target(address, _POD) for address in (*addresses, state)]
        folder = tmp_path_factory.mktemp("prometheus")
        with scraping(folder, targets, rules()) as server, load(served, experts):
            yield server


def await_samples(prometheus: Prometheus, expression: str) -> list[float]:
    """Return the values of a query once it has some; none if it stays without."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        values = [float(sample["value"][1]) for sample in prometheus.query(expression)]
        numbers = [value for value in values if not math.isnan(value)]
        if numbers:
            return numbers
        time.sleep(0.5)
    return []


def filled(expression: str) -> str:
    """Return a panel's query as Grafana sends it if all is chosen."""
    return re.sub(r"\$(namespace|model_name|pod)\b", ".*", expression).replace(
        "$__rate_interval", "10s"
    )


def panels() -> dict[str, list[str]]:
    drawn = [panel for panel in dashboard.dashboard()["panels"] if panel["type"] != "row"]
    return {panel["title"]: [one["expr"] for one in panel["targets"]] for panel in drawn}


@pytest.mark.parametrize("title", panels())
def test_every_query_of_a_panel_returns_data(title: str, prometheus: Prometheus) -> None:
    queries = {query: await_samples(prometheus, filled(query)) for query in panels()[title]}
    assert [query for query, values in queries.items() if not values] == []


def test_every_alert_is_evaluated_on_series_that_are_there(prometheus: Prometheus) -> None:
    loaded = prometheus.rules()
    assert len(loaded) == len(rules()["groups"][0]["rules"])
    deadline = time.monotonic() + _SECONDS
    while any(rule["health"] == "unknown" for rule in prometheus.rules()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert {rule["health"] for rule in prometheus.rules()} == {"ok"}
    selectors = {one for rule in loaded for one in re.findall(r"\w+\{[^}]*\}", rule["query"])}
    # No request of this load fails or is refused, and such a series begins with the first.
    begun = {one for one in selectors if not re.search(r'outcome="(failed|rejected)"', one)}
    assert len(begun) == len(selectors) - 2
    assert [one for one in begun if not await_samples(prometheus, f"count({one})")] == []


@pytest.mark.parametrize("metric", ["waiting", "queueSeconds"])
def test_keda_gets_a_number_even_if_nothing_waits(prometheus: Prometheus, metric: str) -> None:
    values = {
        "model": {"name": "m"},
        "offload": {"enabled": False},
        "autoscaling": {"enabled": True, "metric": metric},
        "kserve": {"enabled": False},
    }
    (spec,) = (obj["spec"] for obj in render(values) if obj["kind"] == "ScaledObject")
    (number,) = await_samples(prometheus, spec["triggers"][0]["metadata"]["query"])
    assert 0 <= number < 1000


def test_a_pod_is_ready_once_its_model_is(prometheus: Prometheus) -> None:
    assert await_samples(prometheus, "predictor_ready") == [1.0, 1.0]
