"""Run the commands of a page and write their outputs below them.

A response of JSON is indented. Values that differ from run to run are replaced by fixed ones. If a
fresh output equals the committed one, with some tolerance for numbers that depend on the machine's
arithmetic, the committed one stays.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from docs.generator.blocks import Command, rewrite
from docs.generator.pages import ROOT
from docs.generator.servers import Servers
from predictor import cli

REST, GRPC = "127.0.0.1:8080", "127.0.0.1:8081"
"""The addresses that pages show. Examples run against free ports."""

_FIXED: dict[str, object] = {
    "created": 1790000000,
    "memoryUsage": 550000000,
    "owned": 16777216000,
    "reserve": 16768827392,
}
"""Values by key that differ from run to run, and what pages show for them."""

_RANDOM_ID = re.compile(r"\b((?:chat)?cmpl-|msg_)[0-9a-f]{32}")
_NUMBER = re.compile(r"-?\d+\.\d+(?:[eE][+-]?\d+)?")
_TOLERANCE = 0.02
_FRACTION = "0.1234"
_LONGEST_LINE = 80
_MOST_NUMBERS = 8
_SECONDS = 120


class Examples:
    """Runs commands; a context manager that ends the servers which were started."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._servers = Servers()
        self._outputs: dict[tuple[str, str], str | None] = {}

    def __enter__(self) -> Examples:
        return self

    def __exit__(self, *_: object) -> None:
        self._servers.close()

    def with_outputs(self, page: str) -> str:
        """Return the page with the output of every command that `output_of` can run."""
        return rewrite(page, self._fresh)

    def _fresh(self, command: Command) -> str:
        fresh = self.output_of(command)
        if fresh is None:
            return command.output
        is_response = command.is_program or command.text.startswith("curl ")
        return command.output if is_response and is_same(fresh, command.output) else fresh

    def output_of(self, command: Command) -> str | None:
        """Return what a command prints now, or None if it is not run here.

        A command without an output on its page is run too, but its output is not shown.

        Raises:
            RuntimeError: The command failed.
        """
        key = command.server, command.text
        if key not in self._outputs:  # several pages may show the same command
            self._outputs[key] = self._run(command)
        output = self._outputs[key]
        return "" if output is not None and not command.output else output

    def _run(self, command: Command) -> str | None:
        if command.is_program:
            return self._program(command)
        if command.text.startswith("curl "):
            return self._curl(command)
        run = _runner(command.text)
        return None if run is None else run()

    def _curl(self, command: Command) -> str:
        address, _ = self._servers.addresses(command.server)
        words = shlex.split(command.text.replace("\\\n", " ").replace(REST, address))
        return presented(_run([*words, "--silent", "--show-error"]))

    def _program(self, command: Command) -> str:
        rest, grpc = self._servers.addresses(command.server)
        source = command.text.replace(REST, rest).replace(GRPC, grpc)
        # A process of its own: clients of the protocol bring its messages, each under one name.
        return _run([sys.executable, "-c", source])


def _run(words: list[str]) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.stderr}")
    return done.stdout.replace("\r\n", "\n").strip("\n")


def _runner(text: str) -> Callable[[], str] | None:
    """Return what runs a `predictor` command that starts no server."""
    words = shlex.split(text.replace("\\\n", " "))
    if words[0].rpartition("/")[2] != "predictor" or words[1] == "serve":
        return None

    def run() -> str:
        with (
            contextlib.chdir(ROOT),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            code = cli.main(words[1:])
        if code == 0:
            return out.getvalue().strip("\n")
        return err.getvalue().strip("\n").splitlines()[-1]

    return run


def presented(text: str) -> str:
    """Return a response as a page shows it: JSON indented, and fixed values for random ones."""
    text = _RANDOM_ID.sub(lambda match: f"{match[1]}{'0' * 31}1", text)
    headers, blank, body = text.rpartition("\n\n") if text.startswith("HTTP/") else ("", "", text)
    headers = re.sub(r"^date: .*$", "date: Sun, 01 Nov 2026 12:00:00 GMT", headers, flags=re.M)
    try:
        value = json.loads(body)
    except ValueError:
        return headers + blank + _events(body)
    return headers + blank + _json(_fixed(value))


def _events(body: str) -> str:
    """Return an event stream with fixed values; any other text as it is."""
    lines = []
    for line in body.splitlines():
        name, _, data = line.partition("data: ")
        if name == "" and data.startswith("{"):
            line = f"data: {json.dumps(_fixed(json.loads(data)))}"
        lines.append(line)
    return "\n".join(lines)


def _fixed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _FIXED.get(key, _fixed(item)) for key, item in value.items()}
    if isinstance(value, list):
        return [_fixed(item) for item in value]
    if isinstance(value, str) and value.startswith('{"'):  # the metadata's placement
        return json.dumps(_fixed(json.loads(value)))
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _json(value: Any, indent: int = 0) -> str:
    """Return JSON of which each part that fits a line is on one; long vectors are cut.

    Fractions count alike: how many digits one has depends on the processor.
    """
    flat = json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and len(value) > _MOST_NUMBERS and _are_numbers(value):
        start = ", ".join(json.dumps(item) for item in value[:4])
        return f"[{start}, ... {len(value)} numbers]"
    width = len(_NUMBER.sub(_FRACTION, flat))
    if width + indent <= _LONGEST_LINE or not isinstance(value, dict | list) or not value:
        return flat
    pad, end = " " * (indent + 2), " " * indent
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_json(item, indent + 2)}" for key, item in value.items()]
        return "{\n" + ",\n".join(pad + item for item in items) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + _json(item, indent + 2) for item in value) + f"\n{end}]"


def _are_numbers(value: list[Any]) -> bool:
    return all(isinstance(item, int | float) for item in value)


def is_same(one: str, other: str) -> bool:
    """Return whether two outputs are equal but for the last digits of fractions."""
    numbers = [[float(number) for number in _NUMBER.findall(text)] for text in (one, other)]
    rests = [_NUMBER.sub("#", text) for text in (one, other)]
    return rests[0] == rests[1] and all(
        math.isclose(mine, theirs, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        for mine, theirs in zip(*numbers, strict=True)
    )
