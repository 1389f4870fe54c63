"""The endpoints of files and batches, in the process of the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from predictor.batch.api import BatchApi
from predictor.batch.queue import BatchQueue
from predictor.batch.runner import RunLimits
from predictor.batch.store import BatchStore, OwnedStore, StoreLimits
from predictor.cache_scope import ONE_SCOPE, ScopeHeader, current_scope
from predictor.protocol.http.middleware import CacheScope

URL = "/v1/x"
TENANT, KEYS = ScopeHeader("X-Tenant"), ScopeHeader("authorization")
STORE_CALLS = (
    "add_file",
    "file",
    "files",
    "content",
    "delete_file",
    "add_batch",
    "batch",
    "batches",
    "cancel",
)


async def use_all(client: httpx.AsyncClient) -> list[int]:
    """Use every endpoint, and return the statuses."""
    files = {"file": ("in.jsonl", b"{}\n")}
    answers = [await client.post("/v1/files", files=files, data={"purpose": "batch"})]
    file = f"/v1/files/{answers[0].json()['id']}"
    body = {
        "input_file_id": answers[0].json()["id"],
        "endpoint": URL,
        "completion_window": "24h",
    }
    answers.append(await client.post("/v1/batches", json=body))
    batch = f"/v1/batches/{answers[1].json()['id']}"
    for path in ("/v1/files", file, f"{file}/content", "/v1/batches", batch):
        answers.append(await client.get(path))
    answers.append(await client.post(f"{batch}/cancel"))
    return [answer.status_code for answer in answers]


def test_the_directory_is_never_used_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_loop: list[str] = []
    calls: set[str] = set()

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            calls.add(name)
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return real(*arguments)
            on_loop.append(name)
            return real(*arguments)

        return called

    for name in STORE_CALLS:
        monkeypatch.setattr(OwnedStore, name, noted(name, getattr(OwnedStore, name)))
    store = BatchStore(tmp_path, StoreLimits(10**6, 30))

    async def run() -> list[int]:
        queue = BatchQueue(store, {URL: None}, RunLimits(1, 1), longest=9)  # type: ignore[dict-item]
        app = Starlette(routes=list(BatchApi(store, queue).routes([""])))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await use_all(client)

    assert asyncio.run(run()) == [200] * 8
    assert calls == set(STORE_CALLS) - {"delete_file"}
    assert on_loop == []


# The scope of a batch in the prefix cache


Scopes = dict[str, set[bytes]]


def client_of(queue: BatchQueue, store: BatchStore, header: ScopeHeader) -> httpx.AsyncClient:
    """Return a client of the routes, behind what notes the scope of each request."""
    routes = list(BatchApi(store, queue).routes([""]))
    app = Starlette(routes=routes, middleware=[Middleware(CacheScope, header=header)])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")


def queue_of(store: BatchStore, scopes: Scopes) -> BatchQueue:
    """Return a queue whose endpoint notes the scopes of the lines of each batch."""

    async def endpoint(request: Request) -> Response:
        scopes.setdefault((await request.json())["batch"], set()).add(current_scope())
        return JSONResponse({})

    return BatchQueue(store, {URL: endpoint}, RunLimits(2, 10**6), longest=1000)


async def create(client: httpx.AsyncClient, name: str, headers: dict[str, str]) -> dict[str, Any]:
    """Create a batch of two lines, and return its document."""
    line = {"method": "POST", "url": URL, "body": {"batch": name}}
    lines = [json.dumps(line | {"custom_id": number}) for number in ("a", "b")]
    upload = {"file": ("in.jsonl", "\n".join(lines).encode())}
    data = {"purpose": "batch"}
    file = await client.post("/v1/files", files=upload, data=data, headers=headers)
    body = {"input_file_id": file.json()["id"], "endpoint": URL, "completion_window": "24h"}
    created = await client.post("/v1/batches", json=body, headers=headers)
    document: dict[str, Any] = created.json()
    return document


def scopes_of_batches(folder: Path, header: ScopeHeader, *requests: dict[str, str]) -> list[bytes]:
    """Create a batch for each headers of a request, and run all of them after a restart."""
    scopes: Scopes = {}

    async def run() -> None:
        first = BatchStore(folder, StoreLimits(10**6, 30))
        async with client_of(queue_of(first, {}), first, header) as client:
            for number, headers in enumerate(requests):
                document = await create(client, str(number), headers)
                assert "scope" not in document
        again = BatchStore(folder, StoreLimits(10**6, 30))
        running = asyncio.create_task(queue_of(again, scopes).run())
        async with asyncio.timeout(20):
            while any(not batch.is_over for each in again.owners() for batch in each.batches()):
                await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(run())
    assert all(len(each) == 1 for each in scopes.values())
    return [scopes[str(number)].pop() for number in range(len(requests))]


def scope(header: ScopeHeader, headers: dict[str, str]) -> bytes:
    """Return the scope of a request for which somebody waits."""
    with header.applied(headers.items()):
        return current_scope()


def test_the_lines_of_a_batch_are_of_the_tenant_whose_request_created_it(tmp_path: Path) -> None:
    """Whatever key the client sends: nobody checks it."""
    key = {"authorization": "Bearer guess"}
    a, b = {"x-tenant": "tenant-a", **key}, {"x-tenant": "tenant-b", **key}
    scopes = scopes_of_batches(tmp_path, TENANT, a, {"x-tenant": "tenant-a"}, b, key, key)

    assert scopes[:3] == [scope(TENANT, a), scope(TENANT, a), scope(TENANT, b)]
    assert len(set(scopes)) == 4  # without the header, each is alone
    assert b"" not in scopes
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"tenant-" not in kept
    assert b"guess" not in kept


def test_with_api_keys_the_lines_of_a_batch_are_of_its_key(tmp_path: Path) -> None:
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))

    assert scopes_of_batches(tmp_path, KEYS, one, two) == [scope(KEYS, one), scope(KEYS, two)]


def test_without_a_header_batches_are_of_the_one_scope_of_all(tmp_path: Path) -> None:
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))

    assert scopes_of_batches(tmp_path, ONE_SCOPE, one, two) == [b"", b""]
