"""The endpoints of files and batches, in the process of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from predictor.batch.api import BatchApi
from predictor.batch.queue import BatchQueue
from predictor.batch.runner import RunLimits
from predictor.batch.store import BatchStore, OwnedStore, StoreLimits

URL = "/v1/x"
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
