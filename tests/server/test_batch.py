"""The command ``batch`` as a process: its answers, its kills, its exit codes."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Checkpoints
from tests.encoding.checkpoints import make_encoder
from tests.forked import Forked
from tests.server.process import Served
from tests.server.test_killed import slow_disk

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FLAGS = ("--model_name=m", "--max_model_len=128", "--prefill_chunk=16")
SECONDS = 200


def line(custom_id: str, url: str = COMPLETIONS, **body: Any) -> str:
    whole = {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **body}}
    return json.dumps(whole)


def prompts(count: int, **body: Any) -> list[str]:
    """Lines of unequal lengths whose answers are all different."""
    chance = random.Random(count)
    return [
        line(f"c{n}", prompt="".join(chance.choices("abcde ", k=chance.randint(1, 60))), **body)
        for n in range(count)
    ]


class Batch:
    """An input and an output, for which the command is run again and again."""

    def __init__(self, folder: Path, model: Path, *flags: str) -> None:
        self.folder, self.model, self.flags = folder, model, flags
        self.input, self.output, self.log = (
            folder / name for name in ("input.jsonl", "output.jsonl", "log")
        )

    def write(self, lines: list[str]) -> None:
        self.input.write_text("\n".join(lines))

    @contextlib.contextmanager
    def started(self, *flags: str, slow: float = 0.0) -> Iterator[Forked]:
        argv = [
            *("batch", f"--model_dir={self.model}", f"--input={self.input}"),
            *(f"--output={self.output}", *FLAGS, *self.flags, *flags),
        ]
        before = [(slow_disk.__module__, slow_disk.__name__, slow)] if slow else []
        with self.log.open("wb") as stderr:
            process = Forked(argv, stderr=stderr, before=before)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, *flags: str) -> int:
        """Run the command to its end and return its exit code."""
        with self.started(*flags) as process:
            return process.wait(SECONDS)

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.output.read_text().splitlines()]

    def texts(self) -> dict[str, str]:
        """The texts of the replies by `custom_id`; every line has one."""
        bodies = {each["custom_id"]: each["response"]["body"] for each in self.results()}
        return {name: body["choices"][0]["text"] for name, body in bodies.items()}

    def await_results(self, count: int) -> None:
        deadline = time.monotonic() + SECONDS
        while not self.output.exists() or self.output.read_bytes().count(b"\n") < count:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)


@pytest.fixture
def batch(tmp_path: Path, checkpoints: Checkpoints) -> Batch:
    return Batch(tmp_path, checkpoints("bloom"), "--device_map=cpu")


def test_a_line_is_answered_as_the_same_call_of_a_server(batch: Batch, served: Served) -> None:
    bodies = {
        "a": (COMPLETIONS, {"prompt": "The weather", "max_tokens": 9}),
        "b": (COMPLETIONS, {"prompt": ["one", "two"], "n": 2, "temperature": 1, "seed": 3}),
        "c": (COMPLETIONS, {"prompt": "x", "max_tokens": 1000}),
        "d": (COMPLETIONS, {"prompt": "x", "model": "other"}),
        "e": ("/v1/embeddings", {"input": "x"}),
        "f": (CHAT, {"messages": "x"}),
    }
    prefix = "a prefix that every line has, so long that pages of it are shared: "
    alike = [line(f"p{n}", prompt=f"{prefix}{n}", max_tokens=2) for n in range(4)]
    batch.write([line(name, url, **body) for name, (url, body) in bodies.items()] + alike)

    assert batch.run() == 0, batch.log.read_text()
    results = {each["custom_id"]: each["response"] for each in batch.results()}
    for name, (url, body) in bodies.items():
        answer = httpx.post(f"{served.url}{url}", json={"model": "m", **body}, timeout=60)
        assert results[name]["status_code"] == answer.status_code, name
        assert comparable(results[name]["body"]) == comparable(answer.json())
        assert results[name]["request_id"]
    usages = [results[f"p{n}"]["body"]["usage"] for n in range(4)]
    cached = sorted(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert cached[0] == 0  # whose prefix the others share
    assert min(cached[1:]) > 0, cached


def comparable(body: dict[str, Any]) -> dict[str, Any]:
    usage = {**body.get("usage", {}), "prompt_tokens_details": None}  # the cache may be warm
    return {**body, "id": None, "created": None, "usage": usage}


def test_a_line_that_is_no_request_has_an_error_and_disturbs_no_other(batch: Batch) -> None:
    bad = [
        "{",
        "[1]",
        '"x"',
        "[" * 10_000,
        line("other", "/v2/models/m/infer"),
        line("get", "/v1/models"),
        line("stream", prompt="x", stream=True),
        line("long", prompt="x" * 300_000),
        line("n", prompt="x", n=10**9),
        line("number", prompt="x", seed=2**200),
        line("deep", prompt="x").replace('"x"', "[" * 400 + "]" * 400),
        '{"custom_id": "\\ud800"}',
    ]
    good = prompts(6, max_tokens=4)
    blank = " " * 50_000
    batch.write([blank, *(text for pair in zip(bad, good * 2, strict=True) for text in pair)])

    assert batch.run("--max_body_size=200000") == 0, batch.log.read_text()
    results = batch.results()
    answered = [each["custom_id"] for each in results if is_answered(each)]
    failed = [each for each in results if not is_answered(each)]
    assert collections.Counter(answered) == {f"c{n}": 2 for n in range(6)}
    assert len(failed) == len(bad)
    assert all(each["error"] or each["response"]["status_code"] == 400 for each in failed)
    too_long = f"The line has {len(bad[7]) + 1} bytes; at most 200000 are taken (max_body_size)."
    assert too_long in [each["error"]["message"] for each in failed if each["error"]]
    assert "24 lines are done (100 %), 12 with an error" in batch.log.read_text()


def is_answered(result: dict[str, Any]) -> bool:
    return result["error"] is None and result["response"]["status_code"] == 200


@pytest.mark.parametrize(
    ("task", "url", "body", "key"),
    [
        ("text_embedding", "/v1/embeddings", {"input": ["a text", "b"]}, "data"),
        ("rerank", "/v1/rerank", {"query": "a", "documents": ["b", "c"]}, "results"),
    ],
)
def test_texts_are_embedded_and_ranked(
    tmp_path: Path, task: str, url: str, body: dict[str, Any], key: str
) -> None:
    labels = 1 if task == "rerank" else 3
    make_encoder(tmp_path / "model", "bert", task, labels=labels)
    batch = Batch(tmp_path, tmp_path / "model", f"--task={task}", "--device_map=cpu")
    batch.write([line(f"c{n}", url, **body) for n in range(5)])

    assert batch.run() == 0, batch.log.read_text()
    assert [len(each["response"]["body"][key]) for each in batch.results()] == [2] * 5


def test_killed_at_any_moment_it_goes_on_without_a_line_twice_or_lost(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    flags = ("--max_memory", '{"cpu": "1500KiB"}', "--max_batch_size=4")
    batch = Batch(tmp_path, checkpoints("bloom"), *flags)
    lines = prompts(60, max_tokens=12)
    batch.write(lines)
    whole = Batch(tmp_path, checkpoints("bloom"), "--device_map=cpu")
    whole.output = tmp_path / "whole.jsonl"
    assert whole.run() == 0, whole.log.read_text()
    chance = random.Random(5)
    for kept in (0, 9, 25):
        with batch.started(slow=0.002) as process:
            batch.await_results(kept + 1)
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
            process.wait()
        with batch.output.open("r+b") as output:  # as if it had been killed within a write
            output.truncate(max(0, batch.output.stat().st_size - chance.randint(0, 30)))
        before = batch.output.read_bytes()

    assert batch.run() == 0, batch.log.read_text()
    whole_lines = before[: before.rfind(b"\n") + 1]
    assert whole_lines.count(b"\n") >= 25
    assert batch.output.read_bytes().startswith(whole_lines)
    ids = [each["id"] for each in batch.results()]
    assert len(ids) == len(set(ids)) == len(lines)
    assert batch.texts() == whole.texts()


def test_sigterm_stops_it_and_the_next_run_goes_on(batch: Batch) -> None:
    batch.write(prompts(400, max_tokens=60))
    with batch.started("--max_batch_size=2") as process:
        batch.await_results(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 143
    log = batch.log.read_text()
    assert "Signal 15: stopping; the same command goes on from here" in log
    assert "lines are done" in log
    assert 2 <= len(batch.results()) < 400


def test_an_engine_that_is_killed_ends_it_with_1_and_the_lines_in_flight_have_no_result(
    batch: Batch,
) -> None:
    batch.write(prompts(200, max_tokens=60))
    with batch.started("--max_batch_size=2") as process:
        batch.await_results(2)
        os.kill(child_of(process.pid), signal.SIGKILL)
        assert process.wait(SECONDS) == 1
    assert "The engine process was killed (signal 9" in batch.log.read_text()
    assert all(is_answered(each) for each in batch.results())
    assert len(batch.results()) < 200


def child_of(pid: int) -> int:
    (children,) = Path(f"/proc/{pid}/task").glob(f"{pid}/children")
    return int(children.read_text().split()[0])


def test_shards_share_out_one_file(batch: Batch) -> None:
    batch.write(prompts(9, max_tokens=2))
    names = []
    for index in range(2):
        batch.output = batch.folder / f"output-{index}.jsonl"
        assert batch.run(f"--shard={index}/2") == 0, batch.log.read_text()
        names.append(set(batch.texts()))

    assert [len(each) for each in names] == [5, 4]
    assert names[0] | names[1] == {f"c{n}" for n in range(9)}


def test_a_finished_batch_ends_at_once_and_loads_nothing(batch: Batch) -> None:
    batch.write(prompts(3, max_tokens=2))
    assert batch.run() == 0
    before = batch.output.read_bytes()
    batch.model = batch.folder / "none"

    assert batch.run() == 0
    assert batch.output.read_bytes() == before
    assert "All 3 lines have a result already" in batch.log.read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda batch: batch.input.unlink(), "The input .* cannot be read: No such file"),
        (lambda batch: batch.output.symlink_to(batch.input), "are the same file"),
        (lambda batch: batch.output.write_text("{}\n"), "is no result of this input"),
        (lambda batch: batch.output.mkdir(), "The output .* cannot be written: Is a directory"),
    ],
)
def test_a_mistake_ends_it_with_78_before_the_model_is_loaded(
    batch: Batch, change: Any, sentence: str
) -> None:
    batch.write(prompts(3))
    change(batch)

    assert batch.run() == 78
    assert re.search(sentence, batch.log.read_text())
    assert "Placement of" not in batch.log.read_text()
