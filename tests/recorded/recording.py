"""Runs all servers, and writes their answers to a file that gives readable diffs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.recorded.requests import REQUESTS
from tests.recorded.running import Answers, answers_of
from tests.recorded.servers import SERVERS

ANSWERS = Path(__file__).with_name("answers.json")

_AT_A_TIME = 2
_SCALAR = r'(?:-?\d[\d.eE+-]*|"(?:[^"\\]|\\.)*"|null|true|false)'
_BREAK = re.compile(r",\n\s*")
_ROW = re.compile(rf"\[\s+({_SCALAR}(?:,\s+{_SCALAR})*)\s+\]")


def begin(names: Collection[str]) -> dict[str, Future[Answers]]:
    """Returns the future answers of servers by name; a few run at a time."""
    pool = ThreadPoolExecutor(_AT_A_TIME)
    answers = {
        name: pool.submit(answers_of, name, [one for one in REQUESTS if one.server == name])
        for name in SERVERS
        if name in names
    }
    pool.shutdown(wait=False)
    return answers


def write(file: Path, answers: Mapping[str, Any]) -> None:
    """Writes answers to a file: sorted, indented, and lists of scalars on one line."""
    text = json.dumps(answers, indent=1, sort_keys=True, ensure_ascii=False)
    file.write_text(_ROW.sub(_on_one_line, text) + "\n")


def _on_one_line(row: re.Match[str]) -> str:
    # A line break in a string is escaped.
    return f"[{_BREAK.sub(', ', row[1])}]"
