"""The report of an import: a table for a terminal, and the same as Markdown."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from predictor.migration.mapping import Outcome, Row

_COLUMNS = ("key", "value", "outcome", "what that means here")


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an import.

    Attributes:
        archive: The name of the imported archive.
        directory: The directory that was made.
        rows: The outcome for each key.
        notes: Further remarks, a sentence each.
        steps: The commands to run next.
        origin: The server that it is imported from.
    """

    archive: str
    directory: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    steps: tuple[str, ...]
    origin: str = "TorchServe"

    def table(self) -> str:
        """Return the report for a terminal."""
        lines = [f"Imported {self.archive} into {self.directory}"]
        for file, group in itertools.groupby(self.rows, lambda row: row.file):
            lines += ["", file, *_aligned([_COLUMNS, *map(_cells, group)])]
        lines += ["", self._counts(), *(f"note: {note}" for note in self.notes)]
        return "\n".join([*lines, "next:", *(f"  {step}" for step in self.steps)])

    def markdown(self) -> str:
        """Return the report as a Markdown document."""
        lines = [f"# {_plain(self.archive)}, imported from {self.origin}", "", self._counts()]
        for note in self.notes:
            lines += ["", _plain(note)]
        for file, group in itertools.groupby(self.rows, lambda row: row.file):
            lines += ["", f"## {_plain(file)}", "", *_markdown_table(map(_cells, group))]
        return "\n".join([*lines, "", "## Next", "", "```sh", *self.steps, "```", ""])

    def _counts(self) -> str:
        counts = Counter(row.outcome for row in self.rows)
        return ", ".join(f"{counts[outcome]} {outcome}" for outcome in get_args(Outcome)) + "."


def _cells(row: Row) -> tuple[str, ...]:
    return (row.key, row.value, row.outcome, row.explanation)


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(padded)}".rstrip()


def _markdown_table(rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(_COLUMNS)} |"
    yield "|---" * len(_COLUMNS) + "|"
    for key, value, outcome, explanation in rows:
        yield f"| {_code(key)} | {_code(value)} | {outcome} | {_escaped(explanation)} |"


def _code(text: str) -> str:
    """Return untrusted text as inline code that cannot break out of its table cell."""
    cell = text.replace("`", "'").replace("|", "\\|")
    return f"`{cell}`" if cell.strip() else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _plain(text: str) -> str:
    return _escaped(text).replace("\n", " ")
