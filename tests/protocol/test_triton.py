"""Triton's config and statistics, asked by its own client."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from tests.protocol.stub import Served


def test_tritons_client_gets_the_config(served: Served) -> None:
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as client:
        config = client.get_model_config("echo")
    assert (config["name"], config["max_batch_size"]) == ("echo", 0)
    assert config["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert config["output"][2] == {
        "name": "prompt_tokens",
        "data_type": "TYPE_INT32",
        "dims": [-1],
    }


def test_tritons_client_gets_statistics_that_count(served: Served) -> None:
    text = triton.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array(["a"], dtype=object))
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as client:
        (before,) = client.get_inference_statistics("echo")["model_stats"]
        client.infer("echo", [text])
        (after,) = client.get_inference_statistics("echo", "1")["model_stats"]
        (whole,) = client.get_inference_statistics()["model_stats"]
    assert after["inference_count"] == before["inference_count"] + 1
    success = after["inference_stats"]["success"]
    assert success["count"] == before["inference_stats"]["success"]["count"] + 1
    assert success["ns"] > before["inference_stats"]["success"]["ns"]
    assert (whole["name"], whole["version"]) == ("echo", "1")


@pytest.mark.parametrize("path", ["config", "stats", "versions/2/stats"])
def test_an_unknown_model_has_none(client: httpx.Client, path: str) -> None:
    name = "echo" if "versions" in path else "nobody"
    assert client.get(f"/v2/models/{name}/{path}").status_code == 404
