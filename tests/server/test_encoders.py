"""A real server of models that read: the lines that its log shows, a full queue, a deadline."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.encoding.checkpoints import make_encoder, make_encoder_decoder
from tests.server.process import Served, serve

DELAY = 3.0
FLAGS = ("--device_map=cpu", "--max_model_len=128")
CLASSES = "sequence_classification"
SHOWN = {
    "question_answering": '"answer"',
    "fill_mask": '"sequence"',
    "text_embedding": '"predictions":[[',
}


@pytest.mark.parametrize("task", SHOWN)
def test_the_lines_that_the_log_shows_are_answered(tmp_path: Path, task: str) -> None:
    make_encoder(tmp_path / "model", "bert", task, labels=2)
    flags = (*FLAGS, "--return_probabilities", "--truncate")
    with serve(tmp_path / "model", f"--task={task}", *flags) as server:
        lines = server.await_ready().examples()
        answers = [_run(line) for line in lines]
        metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
        info = httpx.get(f"{server.url}/info", timeout=30).json()
        cut, refused = (_long(server, **more) for more in ({}, {"truncate": False}))
        log = server.log
    first, second, third = answers
    assert SHOWN[task] in first
    assert json.loads(second)["outputs"]
    assert json.loads(third)["properties"]["task"] == task
    assert "no KV cache; longest sequence: 128 tokens" in log
    assert "the weather" not in log.replace("\n".join(lines), "")
    assert 'predictor_requests_total{model_name="m",outcome="ok",protocol="v2"} 1.0' in metrics
    assert f"--return_probabilities changes nothing: it is for {CLASSES}, not for {task}" in log
    (tokens,) = re.findall(r"path=/v1/models/m:predict status=200 prompt_tokens=(\d+) ", log)[:1]
    assert int(tokens) > 2
    assert info["auto_truncate"] is True
    if task == "text_embedding":
        assert (cut.status_code, cut.json()["usage"]["prompt_tokens"]) == (200, 128)
        assert refused.status_code == 400


def _long(server: Served, **more: bool) -> httpx.Response:
    """Asks for the vector of a text that is too long."""
    body = {"model": "m", "input": "x" * 1000, **more}
    return httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=30)


def _run(line: str) -> str:
    command = [*shlex.split(line), "--silent", "--show-error", "--fail-with-body"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_encoder_decoder_model_is_asked_as_one_that_generates(tmp_path: Path) -> None:
    make_encoder_decoder(tmp_path / "model", "t5")
    with serve(tmp_path / "model", *FLAGS) as server:
        first, second, about = map(_run, server.await_ready().examples())
        body = {"model": "m", "prompt": "a text", "max_tokens": 8}
        completion = httpx.post(f"{server.url}/openai/v1/completions", json=body, timeout=60)
        body = {"instances": ["a text"], "parameters": {"max_new_tokens": 8}}
        url, accept = f"{server.url}/v1/models/m:predict", {"accept": "text/event-stream"}
        whole = httpx.post(url, json=body, timeout=60).json()["predictions"][0]
        events = httpx.post(url, json=body, headers=accept, timeout=60).text.split("\n\n")
    pieces = [json.loads(event.removeprefix("data: ")) for event in events if "{" in event]
    assert json.loads(first)["predictions"][0]["completion_tokens"] == 25
    assert {one["name"] for one in json.loads(second)["outputs"]} >= {"text", "finish_reason"}
    assert json.loads(about)["properties"]["task"] == "text2text_generation"
    assert completion.json()["choices"][0]["text"] == whole["text"]
    assert whole["prompt_tokens"] == len("a text") + 2
    assert len(pieces) > 1
    assert "".join(piece["text"] for piece in pieces) == whole["text"]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Takes one request, and waits for more texts before it reads any."""
    folder = make_encoder(
        tmp_path_factory.mktemp("patient") / "model", "bert", "sequence_classification"
    )
    with serve(folder, *FLAGS, f"--max_batch_delay={DELAY}", "--max_requests=1") as server:
        yield server.await_ready()


def test_a_full_queue_refuses_and_says_when_to_come_again(patient: Served) -> None:
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(patient.predict("a")))
    waiting.start()
    time.sleep(DELAY / 3)
    refused = patient.predict("b")
    waiting.join()
    assert (refused.status_code, [one.status_code for one in answers]) == (429, [200])
    assert int(refused.headers["retry-after"]) >= 1
    assert list(refused.json()) == ["error"]


def test_a_request_ends_at_its_deadline_and_leaves_its_place(patient: Served) -> None:
    url = f"{patient.url}/v1/models/m:predict"
    began = time.monotonic()
    late = httpx.post(
        url, json={"instances": ["a"]}, headers={"x-request-timeout": "0.3"}, timeout=60
    )
    assert late.status_code == 504, late.text
    assert time.monotonic() - began < DELAY - 1
    assert patient.predict("b").status_code == 200
