"""What the README says is true: its commands run, its table is the settings'."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics import MetricWrapperBase

from predictor import metrics
from predictor.settings import Settings
from tests import forked

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
_SECONDS_TO_SET_UP = 280


def shown() -> dict[str, str]:
    """All lines that the README tells to type, each with what it shows below."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    entries = [entry for block in blocks for entry in re.split(r"^\$ ", block, flags=re.M) if entry]
    return {command: output.strip() for command, _, output in (e.partition("\n") for e in entries)}


def commands() -> list[str]:
    return list(shown())


def run(command: str) -> str:
    done = subprocess.run(
        shlex.split(command), cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


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
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
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


URL = "http://127.0.0.1:8080"


def test_the_readme_shows_the_two_commands_of_the_set_up() -> None:
    assert commands()[0] == "make serve"
    assert "make test" in commands()


def test_make_serve_prints_the_readmes_table_and_curl_lines(make_serve: str) -> None:
    table = re.search(r"```text\n(Placement of.*?)```", README, re.DOTALL)
    assert table is not None
    assert table[1] in make_serve
    printed = [line for line in make_serve.splitlines() if line.startswith("curl ")]
    assert len(printed) == 3
    assert set(printed) <= set(commands())


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("curl ")])
def test_the_readmes_curl_lines_work_against_make_serve(make_serve: str, command: str) -> None:
    found = json.loads(run(command.replace("curl ", "curl --silent --fail ", 1)))
    expected = shown()[command]
    if expected:
        assert found == json.loads(expected)
    assert "error" not in found


@pytest.mark.parametrize("command", [line for line in commands() if " plan " in line])
def test_the_readmes_plans_are_what_the_command_prints(make_serve: str, command: str) -> None:
    found = run(command)
    expected = shown()[command]
    assert found == expected if expected else json.loads(found)["tiers"]


def test_the_refusal_that_the_readme_shows_is_the_commands() -> None:
    stated = ("--gpus=2x80GiB", "--memory=64GiB", "--disk=100GiB")
    done = forked.run(["plan", "examples/bloom-176b.json", *stated], cwd=ROOT)
    assert done.returncode == 78
    assert done.stderr.strip().splitlines()[-1] in README.splitlines()


def test_every_command_of_the_readme_is_run_here() -> None:
    """`make test` is what runs this test, and `.ci/run` calls it; `tests/image` has the image's."""
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    others = [
        command
        for command in commands()
        if command not in ("make serve", "make test", "make image")
        and not command.startswith(("curl ", "docker run "))
        and " plan " not in command
    ]
    assert others == []


def _written(name: str, default: object) -> object:
    amounts = ("memory_reserve", "max_body_size")
    return f"{int(str(default)) // 1024**2}Mi" if name in amounts else default


def settings_table() -> str:
    """The README's table, as the settings make it."""
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{_written(name, field.default)}`"
        meaning = re.sub(r"\s+", " ", field.description or "").strip()
        rows.append(f"| `--{name}` | {default} | {meaning} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """The README's table of metrics, as the metrics say it themselves."""
    rows = ["| metric | type | labels besides | meaning |", "| --- | --- | --- | --- |"]
    for metric in vars(metrics).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        family = next(iter(metric.describe()))
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in metric._labelnames if label != "model_name")
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(rows)


def between(name: str) -> str:
    begin = f"<!-- {name}: begin (kept true by tests/test_readme.py) -->"
    return README[README.index(begin) + len(begin) : README.index(f"<!-- {name}: end -->")].strip()


def test_the_table_of_settings_is_the_settings() -> None:
    assert between("settings") == settings_table()


def test_the_table_of_metrics_is_the_metrics() -> None:
    assert between("metrics") == metrics_table()


def test_every_metric_of_the_table_is_on_metrics(make_serve: str) -> None:
    asked = {"instances": ["The weather"], "parameters": {"max_new_tokens": 2}}
    httpx.post(f"{URL}/v1/models/demo:predict", json=asked, timeout=60).raise_for_status()
    told = httpx.get(f"{URL}/metrics", timeout=30).text
    for name in re.findall(r"^\| `(predictor_\w+)`", between("metrics"), re.MULTILINE):
        assert re.search(rf'^{name}(_bucket)?{{.*model_name="demo".*}} ', told, re.MULTILINE), name
    ours = set(re.findall(r"^# TYPE (predictor_\w+) (?!gauge\n.*_created)", told, re.MULTILINE))
    known = set(re.findall(r"`(predictor_\w+)`", between("metrics")))
    assert {name for name in ours if not name.endswith("_created")} <= known
