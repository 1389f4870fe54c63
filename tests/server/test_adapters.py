"""A LoRA adapter is a model of its own to every client, and takes the base's place in a request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from torch import nn
from transformers import AutoModelForCausalLM

from tests.adapters import write_adapter
from tests.conftest import Checkpoints
from tests.server.process import Served, serve

PROMPT = "The weather"


@pytest.fixture(scope="module")
def adapted(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = checkpoints("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    root = tmp_path_factory.mktemp("adapters")
    paths = [
        write_adapter(root / name, model, ("q_proj", "down_proj"), seed=seed)
        for seed, name in enumerate(("one", "two"))
    ]
    pairs = [f"{path.name}={path}" for path in paths]
    flags = ("--max_model_len=128", "--lora_memory=512KiB")
    with serve(folder, *flags, "--lora-modules", *pairs) as server:
        yield server.await_ready()


@pytest.fixture(scope="module")
def llama(checkpoints: Checkpoints) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(checkpoints("llama"))
    return model


def change(served: Served, verb: str, **body: Any) -> httpx.Response:
    """Loads or unloads an adapter."""
    url = f"{served.url}/v1/{verb}_lora_adapter"
    return httpx.post(url, json={f"lora_{key}": value for key, value in body.items()}, timeout=60)


def by_openai(served: Served, model: str) -> str:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)
    return answer.choices[0].text


def by_v1(served: Served, model: str) -> str:
    body: dict[str, Any] = {"instances": [PROMPT], "parameters": {"max_new_tokens": 8}}
    return _post(served, f"/v1/models/{model}:predict", body)["predictions"][0]["text"]


def by_v2(served: Served, model: str) -> str:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [PROMPT]}
    body = {"inputs": [tensor], "parameters": {"max_new_tokens": 8}}
    outputs = _post(served, f"/v2/models/{model}/infer", body)["outputs"]
    return next(output["data"][0] for output in outputs if output["name"] == "text")


def _post(served: Served, path: str, body: dict[str, Any]) -> Any:
    response = httpx.post(served.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def test_every_protocol_picks_an_adapter_by_its_name(adapted: Served) -> None:
    names = (adapted.name, "one", "two")
    texts = [by_openai(adapted, name) for name in names]
    assert len(set(texts)) == 3, "the adapters change nothing"
    assert [by_v1(adapted, name) for name in names] == texts
    assert [by_v2(adapted, name) for name in names] == texts


def test_adapters_are_listed_and_say_their_base(adapted: Served) -> None:
    listed = httpx.get(f"{adapted.url}/openai/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [adapted.name, "one", "two"]
    metadata = httpx.get(f"{adapted.url}/v2/models/one").json()
    assert metadata["properties"]["base"] == adapted.name


def test_an_unknown_adapter_is_no_model(adapted: Served) -> None:
    response = httpx.post(
        f"{adapted.url}/v1/completions", json={"model": "three", "prompt": PROMPT}, timeout=60
    )
    assert response.status_code == 404
    assert "'three'" in response.text or '"three"' in response.text.replace("\\", "")


# --- loaded while the server runs ---


def test_an_adapter_is_loaded_and_unloaded_while_the_server_runs(
    adapted: Served, llama: nn.Module, tmp_path: Path
) -> None:
    by_the_start = by_openai(adapted, "two")
    same = write_adapter(tmp_path / "same", llama, ("q_proj", "down_proj"), seed=1)
    other = write_adapter(tmp_path / "other", llama, ("q_proj", "up_proj"), seed=7)
    loaded = change(adapted, "load", name="new", path=str(same))
    assert (loaded.status_code, "'new' added" in loaded.text) == (200, True), loaded.text
    assert by_openai(adapted, "new") == by_v1(adapted, "new") == by_the_start
    assert change(adapted, "load", name="new", path=str(other)).status_code == 400
    assert change(adapted, "unload", name="new").status_code == 200
    with pytest.raises(openai.NotFoundError):
        by_openai(adapted, "new")
    assert change(adapted, "unload", name="new").status_code == 404
    # Of the same name and prompt, and with nothing of the one before, cached prefixes included.
    assert change(adapted, "load", name="new", path=str(other)).status_code == 200
    assert by_openai(adapted, "new") not in (by_the_start, by_openai(adapted, adapted.name))
    assert change(adapted, "unload", name="new").status_code == 200
    assert by_openai(adapted, "two") == by_the_start


def test_a_running_reply_keeps_its_adapter(
    adapted: Served, llama: nn.Module, tmp_path: Path
) -> None:
    path = write_adapter(tmp_path / "short", llama, ("q_proj", "down_proj"), seed=1)
    assert change(adapted, "load", name="short", path=str(path)).status_code == 200
    body = {"model": "short", "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "stream": True}
    pieces = []
    with (
        openai.OpenAI(base_url=f"{adapted.url}/v1", api_key="none") as client,
        client.completions.create(**body, extra_body={"ignore_eos": True}) as stream,
    ):
        for piece in stream:
            if not pieces:
                assert change(adapted, "unload", name="short").status_code == 200
            pieces.append(piece.choices[0].text)
        whole = client.completions.create(
            **(body | {"model": "two", "stream": False}), extra_body={"ignore_eos": True}
        )
    assert "".join(pieces) == whole.choices[0].text


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"name": "x", "path": "/nowhere"}, "has no adapter_config.json"),
        ({"name": "x"}, "lora_path"),
        ({"name": "x", "path": "/x\0"}, "NUL character"),
        ({"name": "a/b", "path": "/x"}, "lora_name"),
        ({"name": "a\0", "path": "/x"}, "printable"),
        ({"name": "a\x1b[31m", "path": "/x"}, "printable"),
        ({"name": "", "path": "/x"}, "lora_name is empty"),
        ({"name": "one", "path": "/x"}, "already"),
        ({"name": "m", "path": "/x"}, "already"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_is_refused(
    adapted: Served, body: dict[str, str], reason: str
) -> None:
    response = change(adapted, "load", **body)
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]


def test_adapters_stay_within_their_memory_and_fit_the_model(
    adapted: Served, llama: nn.Module, tmp_path: Path
) -> None:
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    large = write_adapter(tmp_path / "large", llama, layers, seed=3)
    statuses, loaded = [], []
    for number in range(40):
        response = change(adapted, "load", name=f"l{number}", path=str(large))
        statuses.append(response.status_code)
        if response.status_code != 200:
            break
        loaded.append(f"l{number}")
    assert statuses[0] == 200
    assert statuses[-1] == 400
    assert "of lora_memory (512.00 KiB)" in response.json()["error"]["message"]
    for name in loaded:
        assert change(adapted, "unload", name=name).status_code == 200
    assert change(adapted, "load", name="again", path=str(large)).status_code == 200
    assert change(adapted, "unload", name="again").status_code == 200


def test_without_memory_for_them_no_adapter_is_loaded_or_unloaded(served: Served) -> None:
    """`served` has the default of `lora_memory`."""
    for prefix in ("", "/openai"):
        for verb in ("load", "unload"):
            path = f"{served.url}{prefix}/v1/{verb}_lora_adapter"
            body = {"lora_name": "new", "lora_path": "/x"}
            assert httpx.post(path, json=body, timeout=60).status_code == 404


def test_adapters_of_the_start_stay(adapted: Served) -> None:
    response = change(adapted, "unload", name="one")
    assert response.status_code == 400
    assert "stay" in response.json()["error"]["message"]
    assert by_openai(adapted, "one")
