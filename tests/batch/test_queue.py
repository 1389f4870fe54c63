"""The queue of a server's batches over real files, with an endpoint that answers at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from predictor.batch import queue as queue_module
from predictor.batch.batch_run import BatchRun
from predictor.batch.lines import LineResponse, digest_of, encode_response
from predictor.batch.output_file import OutputFile
from predictor.batch.queue import BatchQueue
from predictor.batch.records import BatchRecord
from predictor.batch.runner import RunLimits
from predictor.batch.store import BatchStore, OwnedStore, StoreLimits
from predictor.errors import LoadFailed

URL = "/v1/x"


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    return BatchStore(tmp_path, StoreLimits(10**7, 30))


@pytest.fixture
def owned(store: BatchStore) -> OwnedStore:
    return store.of("Bearer one")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(queue_module, "_SECONDS_BETWEEN_SAVES", 0.05)
    monkeypatch.setattr(queue_module, "_SECONDS_OF_A_PAUSE", 0.1)


def request_line(name: str, **body: Any) -> bytes:
    document = {"custom_id": name, "method": "POST", "url": URL, "body": body}
    return json.dumps(document).encode() + b"\n"


def result_of(number: int, line: bytes) -> bytes:
    return encode_response(number, digest_of(line), "old", LineResponse(200, "r", b"{}"))


def add(owned: OwnedStore, *lines: bytes, age: int = 0) -> BatchRecord:
    """Add a batch, some seconds older than now."""
    content = b"".join(lines or [request_line("a"), request_line("b")])
    file = owned.add_file(io.BytesIO(content), "in.jsonl", "batch")
    batch = owned.add_batch(URL, file.id, b"")
    batch = replace(batch, created_at=batch.created_at - age)
    owned.save(batch)
    return batch


class Endpoint:
    """Answers, and counts how often."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        return JSONResponse({}, 400 if self.bodies[-1].get("bad") else 200)


def run_until(
    store: BatchStore, is_over: Callable[[], bool], endpoint: Endpoint | None = None
) -> Endpoint:
    """Run a queue until something holds."""
    endpoint = endpoint or Endpoint()

    async def run() -> None:
        queue = BatchQueue(store, {URL: endpoint}, RunLimits(4, 10**6), longest=1000)
        task = asyncio.create_task(queue.run())
        deadline = time.monotonic() + 20
        while not is_over():
            assert time.monotonic() < deadline
            assert not task.done()
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    return endpoint


def has_status(owned: OwnedStore, batch: BatchRecord, status: str) -> Callable[[], bool]:
    return lambda: owned.batch(batch.id).status == status


def names_in(owned: OwnedStore, file_id: str | None) -> set[str]:
    assert file_id is not None
    lines = owned.content(file_id).read_bytes().splitlines()
    return {json.loads(text)["custom_id"] for text in lines}


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_answers_and_errors_come_into_a_file_each(store: BatchStore, owned: OwnedStore) -> None:
    batch = add(owned, request_line("a"), request_line("b", bad=True), request_line("c"), b"{}\n")
    run_until(store, has_status(owned, batch, "completed"))
    over = owned.batch(batch.id)

    assert (over.total, over.completed, over.failed) == (4, 2, 2)
    assert names_in(owned, over.output_file_id) == {"a", "c"}
    assert names_in(owned, over.error_file_id) == {"b", None}
    left = {path.suffix for path in owned.data("x").parent.iterdir()}
    assert left == {".json", ".data"}


@pytest.mark.parametrize("has_links", [True, False])
def test_results_of_one_kind_are_not_written_again(
    store: BatchStore, owned: OwnedStore, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inodes = []
    finish = BatchRun.finish

    def noted(run: BatchRun, *arguments: Any) -> None:
        inodes.append(run._output.path.stat().st_ino)
        finish(run, *arguments)

    monkeypatch.setattr(BatchRun, "finish", noted)
    if not has_links:
        monkeypatch.setattr(os, "link", raising(OSError(errno.EPERM, "no links")))
    batch = add(owned)
    run_until(store, has_status(owned, batch, "completed"))
    over = owned.batch(batch.id)

    assert over.output_file_id is not None
    content = owned.content(over.output_file_id)
    assert (content.stat().st_ino == inodes[0]) == has_links
    assert content.stat().st_mode & 0o777 == 0o600
    assert names_in(owned, over.output_file_id) == {"a", "b"}
    assert over.error_file_id is None


@pytest.mark.parametrize("content", [b"", b"\0" * 99, b"[]", b'{"more": 1}'])
def test_a_damaged_record_stops_no_other_batch(
    store: BatchStore, owned: OwnedStore, content: bytes
) -> None:
    damaged, other = add(owned, age=9), add(store.of("Bearer two"))
    owned.data(damaged.id).with_suffix(".json").write_bytes(content)

    run_until(store, has_status(store.of("Bearer two"), other, "completed"))


def test_damaged_results_fail_their_batch_which_keeps_the_others(
    store: BatchStore, owned: OwnedStore
) -> None:
    first = request_line("a")
    damaged, other = add(owned, first, request_line("b"), age=9), add(owned)
    owned.results(damaged.id).write_bytes(result_of(1, first) + b"garbage\n" + b"torn")
    run_until(store, has_status(owned, other, "completed"))
    over = owned.batch(damaged.id)

    assert over.status == "failed"
    assert over.error == "The results so far cannot be continued; those that are whole are kept."
    assert names_in(owned, over.output_file_id) == {"old"}
    assert (over.completed, over.failed) == (1, 0)


def test_results_that_are_a_folder_fail_their_batch(store: BatchStore, owned: OwnedStore) -> None:
    batch, other = add(owned, age=9), add(owned)
    owned.results(batch.id).mkdir()
    run_until(store, has_status(owned, other, "completed"))

    assert owned.batch(batch.id).status == "failed"


@pytest.mark.parametrize("status", ["cancelled", "expired"])
def test_a_batch_of_damaged_results_can_be_cancelled_and_expires(
    store: BatchStore, owned: OwnedStore, status: str
) -> None:
    batch = add(owned)
    owned.results(batch.id).write_bytes(b"garbage\n")
    owned.data(batch.input_file_id).unlink()
    if status == "cancelled":
        owned.cancel(batch.id)
    else:
        owned.save(replace(batch, expires_at=1))
    endpoint = run_until(store, has_status(owned, batch, status))

    assert endpoint.bodies == []


def test_a_batch_that_another_replica_runs_holds_up_no_other(
    store: BatchStore, owned: OwnedStore
) -> None:
    batch, other = add(owned, age=9), add(owned)
    with held(owned.results(batch.id)):
        run_until(store, has_status(owned, other, "completed"))
        assert owned.batch(batch.id).status == "validating"
    run_until(store, has_status(owned, batch, "completed"))


@pytest.mark.parametrize("where", ["append", "sync"])
def test_a_batch_without_space_waits_and_holds_up_no_other(
    store: BatchStore, owned: OwnedStore, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, other = add(owned, age=9), add(owned)
    real, is_full = getattr(OutputFile, where), threading.Event()
    is_full.set()

    def full(file: OutputFile, *arguments: Any) -> None:
        if is_full.is_set() and file.path == owned.results(batch.id):
            raise LoadFailed("full") if where == "append" else OSError(errno.ENOSPC, "full")
        real(file, *arguments)

    monkeypatch.setattr(OutputFile, where, full)
    run_until(store, has_status(owned, other, "completed"))
    files = len(owned.files())
    assert not owned.batch(batch.id).is_over
    is_full.clear()
    run_until(store, has_status(owned, batch, "completed"))
    over = owned.batch(batch.id)
    assert names_in(owned, over.output_file_id) == {"a", "b"}
    assert len(owned.files()) == files + 1


def test_an_end_that_fails_half_way_leaves_nothing_twice(
    store: BatchStore, owned: OwnedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = add(owned, request_line("a"), request_line("b", bad=True))
    real, calls = OwnedStore.adopt, []

    def adopt(store: OwnedStore, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) in (2, 3):
            raise OSError(errno.ENOSPC, "full")
        return real(store, *arguments)

    monkeypatch.setattr(OwnedStore, "adopt", adopt)
    endpoint = run_until(store, has_status(owned, batch, "completed"))

    assert len(endpoint.bodies) == 2
    assert len(owned.files()) == 3
    assert len(list(owned.data("x").parent.iterdir())) == 3 * 2 + 1


def test_a_batch_whose_endpoint_fails_unexpectedly_fails_alone(
    store: BatchStore, owned: OwnedStore
) -> None:
    class Failing(Endpoint):
        async def __call__(self, request: Request) -> Response:
            response = await super().__call__(request)
            if self.bodies[-1].get("fails"):
                raise KeyError("x")
            return response

    batch, other = add(owned, request_line("a", fails=True), age=9), add(owned)
    run_until(store, has_status(owned, other, "completed"), Failing())

    assert owned.batch(batch.id).status == "failed"
    assert owned.batch(batch.id).error == (
        "An error that nobody expected, KeyError; the log has its trace."
    )


def test_a_batch_that_another_replica_ends_meanwhile_is_not_run_again(
    store: BatchStore, owned: OwnedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = add(owned, age=9)
    real = OutputFile.__init__

    def later(file: OutputFile, path: Path, **options: Any) -> None:
        if path == owned.results(batch.id) and not owned.batch(batch.id).is_over:
            owned.enter(batch, "completed", completed=2)
        real(file, path, **options)

    monkeypatch.setattr(OutputFile, "__init__", later)
    other = add(owned)
    endpoint = run_until(store, has_status(owned, other, "completed"))

    assert len(endpoint.bodies) == 2
    assert owned.batch(batch.id).completed == 2
    assert not owned.results(batch.id).exists()


def test_a_batch_without_input_keeps_the_results_that_it_has(
    store: BatchStore, owned: OwnedStore
) -> None:
    first = request_line("a")
    batch = add(owned, first, request_line("b"))
    owned.results(batch.id).write_bytes(result_of(1, first))
    owned.data(batch.input_file_id).unlink()
    run_until(store, has_status(owned, batch, "failed"))
    over = owned.batch(batch.id)

    assert over.error == "The input file cannot be read any more."
    assert names_in(owned, over.output_file_id) == {"old"}


def test_an_interrupted_batch_computes_the_rest(store: BatchStore, owned: OwnedStore) -> None:
    first = request_line("a")
    batch = add(owned, first, request_line("b"))
    owned.results(batch.id).write_bytes(result_of(1, first) + b'{"id":"batch')
    endpoint = run_until(store, has_status(owned, batch, "completed"))
    over = owned.batch(batch.id)

    assert len(endpoint.bodies) == 1
    assert (over.completed, over.failed) == (2, 0)
    assert names_in(owned, over.output_file_id) == {"old", "b"}


def test_a_volume_that_hangs_stalls_no_event_loop(
    store: BatchStore, owned: OwnedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = add(owned)
    loops: set[int] = set()

    def off_the_loop(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop()
                loops.add(hash(name))
            return real(*arguments, **named)

        return called

    for name in ("open", "write", "fsync", "pread", "close", "ftruncate"):
        monkeypatch.setattr(os, name, off_the_loop(name, getattr(os, name)))
    over = has_status(owned, batch, "completed")
    is_over = threading.Event()

    def watch() -> None:
        while not over():
            time.sleep(0.01)
        is_over.set()

    threading.Thread(target=watch).start()
    run_until(store, is_over.is_set)

    assert not loops


def raising(error: Exception) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails


def test_many_lines_and_long_ones_are_answered_once_each(
    store: BatchStore, owned: OwnedStore
) -> None:
    lines = [request_line(str(n), text="x" * (n % 7 * 100)) for n in range(600)]
    batch = add(owned, *lines, request_line("long", text="x" * 2000))
    endpoint = run_until(store, has_status(owned, batch, "completed"))
    over = owned.batch(batch.id)

    assert len(endpoint.bodies) == 600
    assert names_in(owned, over.output_file_id) == {str(n) for n in range(600)}
    assert (over.total, over.completed, over.failed) == (601, 600, 1)
