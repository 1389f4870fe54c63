"""Tenants share no prefixes: what a reply of a real server says of cached tokens, by who asks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import Served, serve

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
FLAGS = ("--max_model_len=256", "--device_map=cpu")
LONG = "Today the weather is really nice, and my friend Tom is going to the park. " * 5
SECONDS = 60

COMPLETIONS, CHAT, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/messages"
WAYS = [
    *((path, stream) for path in (COMPLETIONS, CHAT) for stream in (False, True)),
    (MESSAGES, False),
]


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose gateway says who calls."""
    folder = tmp_path_factory.mktemp("batches")
    flags = ("--prefix_cache_salt_header=X-Tenant", f"--batch_dir={folder}")
    with serve(DEMO, *FLAGS, *flags) as server:
        yield server.await_ready()


@pytest.fixture(scope="module")
def keys() -> Iterator[Served]:
    """A server with two API keys."""
    with serve(DEMO, *FLAGS, "--api_key=one,two") as server:
        yield server.await_ready()


def body_of(path: str, text: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "m", "max_tokens": 2}
    if path == COMPLETIONS:
        return body | {"prompt": text}
    return body | {"messages": [{"role": "user", "content": text}]}


def cached(served: Served, path: str, body: dict[str, Any], headers: dict[str, str]) -> int:
    """Send a request, and return how many tokens of its prompt were cached."""
    response = httpx.post(served.url + path, json=body, headers=headers, timeout=SECONDS)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return cached_in(response.json())
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n")]
    documents = [json.loads(event) for event in events if event not in ("", "[DONE]")]
    return cached_in(documents[-1])


def cached_in(document: dict[str, Any]) -> int:
    usage = document["usage"]
    if "cache_read_input_tokens" in usage:
        return int(usage["cache_read_input_tokens"])
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def by_turns(served: Served, way: tuple[str, bool], *callers: dict[str, str]) -> list[bool]:
    """Have callers send the same long prompt, and return of which of them a part was cached."""
    path, stream = way
    body = body_of(path, f"{WAYS.index(way)}. {LONG}")
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return [cached(served, path, body, headers) > 0 for headers in callers]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_tenants_prefix_is_cached_for_itself_alone(
    tenants: Served, way: tuple[str, bool]
) -> None:
    a, b = {"x-tenant": "a"}, {"x-tenant": "b"}
    guessed = a | {"authorization": "Bearer b"}

    shared = by_turns(tenants, way, a, a, b, guessed, b, {}, {})
    assert shared == [False, True, False, True, True, False, False]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_without_a_header_each_api_key_is_a_tenant(keys: Served, way: tuple[str, bool]) -> None:
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    other = one
    if way[0] == MESSAGES:
        two, other = {"x-api-key": "two"}, {"x-api-key": "one"}

    assert by_turns(keys, way, one, other, two, two) == [False, True, False, True]


def test_the_lines_of_a_batch_find_prefixes_of_their_own_tenant_alone(tenants: Served) -> None:
    """The client sends one key for both: nobody checks it."""
    body = body_of(COMPLETIONS, f"A batch. {LONG}")
    a, b = ({"x-tenant": name, "authorization": "Bearer any"} for name in ("a", "b"))
    assert cached(tenants, COMPLETIONS, body, a) == 0

    assert cached_in_batch(tenants, body, b) == 0
    assert cached_in_batch(tenants, body, a) > 0
    assert cached(tenants, COMPLETIONS, body, b) > 0  # from the lines of its batch


def cached_in_batch(served: Served, body: dict[str, Any], headers: dict[str, str]) -> int:
    """Run a batch of one line, and return how many tokens of its prompt were cached."""
    with httpx.Client(base_url=served.url, headers=headers, timeout=SECONDS) as client:
        line = {"custom_id": "a", "method": "POST", "url": COMPLETIONS, "body": body}
        files = {"file": ("in.jsonl", json.dumps(line).encode())}
        file = client.post("/v1/files", files=files, data={"purpose": "batch"}).json()
        created = {"endpoint": COMPLETIONS, "completion_window": "24h", "input_file_id": file["id"]}
        batch = client.post("/v1/batches", json=created).json()
        deadline = time.monotonic() + SECONDS
        while batch["status"] != "completed":
            assert time.monotonic() < deadline, batch
            time.sleep(0.02)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
        output = client.get(f"/v1/files/{batch['output_file_id']}/content").json()
    return cached_in(output["response"]["body"])
