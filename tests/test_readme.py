"""`make serve` does what the README and the documentation say.

The outputs of all other commands are compared in `tests/docs`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest

from docs.generator import blocks
from docs.generator.examples import presented
from docs.generator.pages import DOCS, ROOT, pages

README = (ROOT / "README.md").read_text()
LOCAL = (DOCS / "getting-started" / "local.md").read_text()
URL = "http://127.0.0.1:8080"
_SECONDS_TO_SET_UP = 280


def commands() -> list[str]:
    """All lines that the README and the documentation tell to type."""
    all_commands = [one for page in pages() for one in blocks.commands(page.read_text())]
    return list(dict.fromkeys(one.text for one in all_commands if not one.is_program))


def calls() -> dict[str, str]:
    """The curl lines of the README and of the first page, each with its output."""
    shown = [one for page in (README, LOCAL) for one in blocks.commands(page)]
    return {one.text: one.output for one in shown if one.text.startswith("curl ")}


def run(command: str) -> str:
    done = subprocess.run(
        shlex.split(command), cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def environ() -> dict[str, str]:
    """Return the environment without that of the make that runs the tests: one in it says so."""
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    own = {name: value for name, value in os.environ.items() if name not in outer}
    return {**own, "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def make_serve() -> Iterator[str]:
    """`make serve`, to the letter; gives what it wrote until the model was ready."""
    with subprocess.Popen(
        ["make", "serve"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environ(),
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        deadline = time.monotonic() + _SECONDS_TO_SET_UP
        for line in process.stdout:
            lines.append(line)
            if line.startswith(f"curl {URL}/v2/models/demo\n") or time.monotonic() > deadline:
                break
        yield "".join(lines)
        os.killpg(process.pid, signal.SIGTERM)
        process.stdout.read()


def test_make_serve_prints_the_table_and_the_curl_lines_that_are_shown(make_serve: str) -> None:
    table = re.search(r"```text\n(Placement of.*?)```", README, re.DOTALL)
    assert table is not None
    assert table[1] in make_serve
    printed = [line for line in make_serve.splitlines() if line.startswith("curl ")]
    assert len(printed) == 3
    assert set(printed) <= set(calls())


def test_the_first_line_is_the_address_of_the_page_that_the_readme_names(make_serve: str) -> None:
    assert make_serve.splitlines()[0].endswith(f"Open {URL}/ in a browser")
    assert f"<{URL}/>" in README
    page = httpx.get(f"{URL}/", headers={"Accept": "text/html"}, timeout=30)
    assert page.text.startswith("<!doctype html>")


@pytest.mark.parametrize("command", calls())
def test_the_curl_lines_work_against_make_serve(make_serve: str, command: str) -> None:
    answer = run(command.replace("curl ", "curl --silent --fail ", 1))
    expected = calls()[command]
    assert presented(answer) == expected if expected else json.loads(answer)
    assert "error" not in answer


def test_every_metric_of_the_table_is_on_metrics(make_serve: str) -> None:
    table = (DOCS / "reference" / "metrics.md").read_text()
    names = re.findall(r"^\| `(predictor_\w+)`", table, re.MULTILINE)
    body = {"instances": ["The weather"], "parameters": {"max_new_tokens": 2}}
    httpx.post(f"{URL}/v1/models/demo:predict", json=body, timeout=60).raise_for_status()
    exposed = httpx.get(f"{URL}/metrics", timeout=30).text
    for name in names:
        if name == "predictor_expert_hottest_ratio":  # by layers with experts, of which it has none
            continue
        assert re.search(rf'^{name}(_bucket)?{{.*model_name="demo".*}} ', exposed, re.MULTILINE), (
            name
        )
    ours = set(re.findall(r"^# TYPE (predictor_\w+) (?!gauge\n.*_created)", exposed, re.MULTILINE))
    assert {name for name in ours if not name.endswith("_created")} <= set(names)
