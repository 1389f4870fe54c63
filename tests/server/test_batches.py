"""OpenAI's client with files and batches of a real server."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import Checkpoints
from tests.server.process import Served, serve

FLAGS = ("--max_model_len=128", "--prefill_chunk=16", "--device_map=cpu", "--max_batch_size=4")
COMPLETIONS = "/v1/completions"
SECONDS = 120


def lines(count: int, **body: Any) -> bytes:
    made = [
        {
            "custom_id": f"c{n}",
            "method": "POST",
            "url": COMPLETIONS,
            "body": {"model": "m", "prompt": "ab" * (n % 7 + 1), "max_tokens": 5, **body},
        }
        for n in range(count)
    ]
    return "\n".join(map(json.dumps, made)).encode()


@pytest.fixture(scope="module")
def server(
    checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Path]]:
    folder = tmp_path_factory.mktemp("batches") / "kept"
    flags = (f"--batch_dir={folder}", "--api_key=one,two", "--batch_file_size=2MiB")
    with serve(checkpoints("bloom"), *FLAGS, *flags, "--batch_dir_size=3MiB", gated=True) as served:
        yield served.await_ready(), folder


@pytest.fixture
def served(server: tuple[Served, Path]) -> Served:
    return server[0]


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return client_of(served, "one")


def client_of(served: Served, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=60)


def begin(client: openai.OpenAI, content: bytes, **options: Any) -> Any:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h", **options
    )


def await_status(client: openai.OpenAI, batch: Any, *statuses: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while (current := client.batches.retrieve(batch.id)).status not in statuses:
        assert time.monotonic() < deadline, current
        assert current.status not in ("failed",), current.errors
        time.sleep(0.05)
    return current


def content_of(client: openai.OpenAI, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in client.files.content(file_id).text.splitlines()]


def test_a_batch_is_answered_line_by_line(client: openai.OpenAI) -> None:
    bad = b'\n{"custom_id": "bad"}\n{'
    batch = begin(client, lines(9) + bad, metadata={"run": "7"})
    assert batch.status == "validating"
    assert batch.metadata == {"run": "7"}
    over = await_status(client, batch, "completed")

    counts = over.request_counts
    assert (counts.total, counts.completed, counts.failed) == (11, 9, 2)
    output, errors = (
        content_of(client, file) for file in (over.output_file_id, over.error_file_id)
    )
    assert {each["custom_id"] for each in output} == {f"c{n}" for n in range(9)}
    body = {"model": "m", "prompt": "ab", "max_tokens": 5}
    alone = client.completions.create(**body)
    texts = {each["custom_id"]: each["response"]["body"]["choices"][0] for each in output}
    assert texts["c0"]["text"] == texts["c7"]["text"] == alone.choices[0].text
    assert {each["custom_id"] for each in errors} == {"bad", None}
    assert over.id in [each.id for each in client.batches.list()]
    assert client.files.retrieve(over.output_file_id).purpose == "batch_output"


def test_files_are_listed_read_and_deleted(client: openai.OpenAI) -> None:
    file = client.files.create(file=("name.jsonl", b"{}\n"), purpose="batch")

    assert (file.filename, file.bytes, file.purpose) == ("name.jsonl", 3, "batch")
    assert file.expires_at is not None
    assert file.expires_at - file.created_at == 30 * 86400
    assert client.files.retrieve(file.id).id == file.id
    assert client.files.content(file.id).read() == b"{}\n"
    assert file.id in [each.id for each in client.files.list()]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="There is no file"):
        client.files.retrieve(file.id)


def test_lists_come_in_pages(client: openai.OpenAI) -> None:
    ids = {client.files.create(file=("x", b"{}"), purpose="batch").id for _ in range(3)}
    page = client.files.list(limit=2)

    assert len(page.data) == 2
    assert page.has_next_page()
    assert ids <= {each.id for each in page}
    for file_id in ids:
        client.files.delete(file_id)


def test_another_key_sees_nothing(served: Served, client: openai.OpenAI) -> None:
    batch = begin(client, lines(1))
    other = client_of(served, "two")

    assert list(other.files.list()) == list(other.batches.list()) == []
    for call in (
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: other.files.content(batch.input_file_id),
        lambda: other.files.delete(batch.input_file_id),
        lambda: other.batches.create(
            input_file_id=batch.input_file_id, endpoint=COMPLETIONS, completion_window="24h"
        ),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    with pytest.raises(openai.AuthenticationError):
        client_of(served, "three").files.list()
    await_status(client, batch, "completed")


def test_what_is_kept_is_the_processs_alone(server: tuple[Served, Path]) -> None:
    served, folder = server
    client_of(served, "one").files.create(file=("x", b"{}"), purpose="batch")
    kept = [folder, *folder.rglob("*")]

    assert {stat.S_IMODE(path.stat().st_mode) for path in kept if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept if path.is_file()} == {0o600}
    assert not any("one" in path.name for path in kept)


def test_a_cancelled_batch_keeps_what_it_has(served: Served, client: openai.OpenAI) -> None:
    batch = begin(client, lines(200, max_tokens=60))
    deadline = time.monotonic() + SECONDS
    while client.batches.retrieve(batch.id).request_counts.completed < 3:
        assert time.monotonic() < deadline
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    over = await_status(client, batch, "cancelled")

    assert 3 <= over.request_counts.completed < 200
    assert over.cancelling_at is not None
    assert len(content_of(client, over.output_file_id)) == over.request_counts.completed
    with pytest.raises(openai.BadRequestError, match="The batch is cancelled already"):
        client.batches.cancel(batch.id)


def test_a_request_is_answered_while_a_batch_fills_every_place(
    served: Served, client: openai.OpenAI
) -> None:
    """It takes a place of the batch, which goes on afterwards."""
    batch = begin(client, lines(100, max_tokens=100))
    served.await_gauge("predictor_sequences_running", 4)
    before = served.gauge("predictor_preemptions_total")
    answer = client.completions.create(model="m", prompt="hello", max_tokens=3)

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert served.gauge("predictor_preemptions_total") == before  # those of bulk work are no load
    assert served.gauge("predictor_bulk_sequences_waiting") > 0
    assert served.gauge("predictor_sequences_waiting") == 0
    assert client.batches.retrieve(batch.id).status == "in_progress"
    client.batches.cancel(batch.id)
    await_status(client, batch, "cancelled")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"endpoint": "/v1/images"}, "There is no endpoint '/v1/images' for batches"),
        ({"completion_window": "1h"}, "completion_window must be '24h'."),
        ({"input_file_id": "file-x"}, "There is no file 'file-x'."),
        ({"input_file_id": "../../etc/passwd"}, "There is no file '../../etc/passwd'."),
        ({"metadata": {"a": 1}}, "A value of metadata must be a string"),
        ({"more": 1}, "Unknown key 'more' in the body"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(
    client: openai.OpenAI, body: dict[str, Any], sentence: str
) -> None:
    file = client.files.create(file=("x", b"{}"), purpose="batch")
    whole = {"input_file_id": file.id, "endpoint": COMPLETIONS, "completion_window": "24h"}

    with pytest.raises(openai.APIStatusError, match=sentence.replace("'", ".")) as raised:
        client.post("/batches", body=whole | body, cast_to=object)
    assert raised.value.status_code in (400, 404)
    client.files.delete(file.id)


def test_uploads_are_bounded(served: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        client.files.create(file=("x", b"x" * (2 * 1024**2 + 20_000)), purpose="batch")
    assert raised.value.status_code == 413
    largest = client.files.create(file=("x", b"x" * 2 * 1024**2), purpose="batch")
    with pytest.raises(openai.APIStatusError, match="batch_dir_size") as raised:
        client.files.create(file=("x", b"x" * 2 * 1024**2), purpose="batch")
    assert raised.value.status_code == 413
    client.files.delete(largest.id)
    with pytest.raises(openai.BadRequestError, match="purpose must be 'batch'"):
        client.files.create(file=("x", b"x"), purpose="fine-tune")
    headers = {"authorization": "Bearer one"}
    for content, kind in ((b"{}", "application/json"), (b"x", "multipart/form-data; boundary=y")):
        answer = httpx.post(
            f"{served.url}/v1/files", content=content, headers={**headers, "content-type": kind}
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def test_a_batch_goes_on_after_a_restart(checkpoints: Checkpoints, tmp_path: Path) -> None:
    flags = (*FLAGS, f"--batch_dir={tmp_path}")
    with serve(checkpoints("bloom"), *flags) as first:
        client = client_of(first.await_ready(), "any")
        batch = begin(client, lines(120, max_tokens=20))
        while client.batches.retrieve(batch.id).request_counts.completed < 5:
            time.sleep(0.01)
        first.process.kill()
        first.process.wait()
    with serve(checkpoints("bloom"), *flags) as second:
        client = client_of(second.await_ready(), "any")
        over = await_status(client, batch, "completed")
        output = content_of(client, over.output_file_id)
    assert (over.request_counts.total, over.request_counts.completed) == (120, 120)
    assert sorted(each["custom_id"] for each in output) == sorted(f"c{n}" for n in range(120))


def test_without_a_directory_there_are_no_files(checkpoints: Checkpoints) -> None:
    with serve(checkpoints("bloom"), *FLAGS) as server:
        url = server.await_ready().url
        assert httpx.get(f"{url}/v1/files").status_code == 404
        assert httpx.post(f"{url}/v1/batches", json={}).status_code == 404
