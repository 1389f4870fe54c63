"""What is served and whether it is ready, over real sockets."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from predictor.mixture.heat import LayerHeat
from tests.protocol.stub import Served, serve
from tests.protocol.wire import BODY, INFER, PREDICT, refusal


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/", {"status": "alive"}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models", {"models": ["echo"]}),
        ("/v2/models/echo/ready", {"name": "echo", "ready": True}),
        ("/v2/models/echo/versions/1/ready", {"name": "echo", "ready": True}),
    ],
)
def test_a_status_path_answers(client: httpx.Client, path: str, document: Any) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()) == (200, document)
    assert client.head(path).status_code == 200


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_servers_metadata_need_no_redirect(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.json()["name"] == "accelerate-predictor"


@pytest.mark.parametrize("path", ["/v2/models/echo", "/v2/models/echo/versions/1"])
def test_a_models_metadata_tell_its_placement_as_a_string(client: httpx.Client, path: str) -> None:
    document = client.get(path).json()
    assert document["name"] == "echo"
    assert document["versions"] == ["1"]
    assert document["platform"] == "stub"
    assert document["properties"]["dtype"] == "none"
    assert json.loads(document["properties"]["placement"]) == {"gpu": 0, "cpu": 2, "disk": 1}


@pytest.mark.parametrize("path", ["/v2/models/echo", "/v2/models/echo/versions/1"])
def test_the_experts_of_each_layer_are_shown_with_their_use(
    served: Served, client: httpx.Client, path: str
) -> None:
    served.model.heat = [LayerHeat("layers.0", (3, 0, 5), {"0": (2,), "cpu": (0, 2)})]
    assert client.get(f"{path}/experts").json()["layers"] == [
        {
            "name": "layers.0",
            "hottest_share": 0.625,
            "tokens": [3, 0, 5],
            "in_slots": {"0": [2], "cpu": [0, 2]},
        }
    ]


def test_a_model_without_experts_shows_no_layers(client: httpx.Client) -> None:
    assert client.get("/v2/models/echo/experts").json() == {"name": "echo", "layers": []}


def test_experts_of_an_unknown_model_are_not_found(client: httpx.Client) -> None:
    assert client.get("/v2/models/other/experts").status_code == 404


def test_kserves_other_routes_stay(client: httpx.Client) -> None:
    assert client.get("/metrics").status_code == 200


def test_an_unready_model_is_unready_everywhere_and_says_how_far_it_is(
    served: Served, client: httpx.Client
) -> None:
    served.model.ready = False
    served.model.loading = {"blocks": 3, "of": 22}
    for path in ("/v1/models/echo", "/v2/models/echo/ready", "/v2/models/echo/versions/1/ready"):
        response = client.get(path)
        assert response.status_code == 503
        assert response.json() == {
            "name": "echo",
            "ready": False,
            "progress": {"blocks": 3, "of": 22},
        }
    response = client.get("/v2/health/ready")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "progress": {"blocks": 3, "of": 22}}
    assert client.get("/v2/health/live").status_code == client.get("/").status_code == 200
    assert client.get("/v2/models/echo").status_code == 200


def test_a_model_that_is_ready_while_its_memory_fills_says_how_far_that_is(
    served: Served, client: httpx.Client
) -> None:
    filling = {"phase": "filling memory", "bytes_done": 3, "bytes_total": 22, "seconds_left": 1.9}
    served.model.loading = filling
    response = client.get("/v2/health/ready")
    assert (response.status_code, response.json()) == (200, {"ready": True, "progress": filling})
    response = client.get("/v2/models/echo/ready")
    assert response.status_code == 200
    assert response.json() == {"name": "echo", "ready": True, "progress": filling}
    assert client.post(INFER, json=BODY).status_code == 200


def test_an_unready_model_answers_no_prompt(served: Served, client: httpx.Client) -> None:
    served.model.ready = False
    for path in (PREDICT, INFER):
        assert refusal(client.post(path, json=BODY), 503) == "Model 'echo' is not ready."


def test_an_unready_model_without_progress_says_none(served: Served, client: httpx.Client) -> None:
    served.model.ready = False
    assert client.get("/v2/health/ready").json() == {"ready": False}


def test_a_server_without_models_is_not_ready(served: Served, client: httpx.Client) -> None:
    served.models.models.clear()
    try:
        assert client.get("/v2/health/ready").status_code == 503
    finally:
        served.models.update(served.model)


def test_the_index_lists_models_and_their_state(served: Served, client: httpx.Client) -> None:
    ready = {"name": "echo", "version": "1", "state": "READY", "reason": ""}
    assert client.post("/v2/repository/index").json() == [ready]
    assert client.post("/v2/repository/index", json={"ready": True}).json() == [ready]
    served.model.ready = False
    (row,) = client.post("/v2/repository/index", json={}).json()
    assert row["state"] == "UNAVAILABLE"
    assert client.post("/v2/repository/index", json={"ready": True}).json() == []
    wrong = client.post("/v2/repository/index", json={"ready": 1})
    assert refusal(wrong, 400) == "ready must be a boolean, not an integer."


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_models_are_not_loaded_or_unloaded_by_anyone(client: httpx.Client, verb: str) -> None:
    response = client.post(f"/v2/repository/models/echo/{verb}")
    sentence = "Loading and unloading of models is turned off on this server."
    assert refusal(response, 404) == sentence
    assert client.get("/v2/models").json() == {"models": ["echo"]}


def test_loading_and_unloading_may_be_turned_on() -> None:
    with serve(load_unload=True) as served:
        response = httpx.post(f"{served.url}/v2/repository/models/echo/unload")
        assert (response.status_code, response.json()["unload"]) == (200, True)
        assert httpx.get(f"{served.url}/v2/models").json() == {"models": []}
