"""Every page equals a fresh generation: its tables, and the outputs of its commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generator import tables
from docs.generator.blocks import Command, commands
from docs.generator.examples import Examples
from docs.generator.pages import DOCS, ROOT, pages
from predictor.settings import Settings

REMEDY = "run: make generate"
NAMES = [str(page.relative_to(ROOT)) for page in pages()]
ELSEWHERE = {
    "make serve": "tests/test_readme.py",
    "make test": ".ci/run",
    "make image": "tests/image/conftest.py",
    "docker run": "tests/image/containers.py",
}
"""Commands that are not run here, and the file that runs them."""


@pytest.fixture(scope="module")
def examples() -> Iterator[Examples]:
    with Examples() as running:
        yield running


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_equals_a_fresh_generation(examples: Examples, name: str) -> None:
    text = (ROOT / name).read_text()
    assert examples.with_outputs(tables.with_tables(text)) == text, REMEDY


def all_commands() -> list[Command]:
    return [command for page in pages() for command in commands(page.read_text())]


def test_a_command_that_is_not_run_here_is_run_by_another_test() -> None:
    here = ("curl ", ".venv/bin/predictor plan ")
    others = [one.text for one in all_commands() if not one.is_program]
    others = [text for text in others if not text.startswith(here)]
    unknown = [text for text in others if not text.startswith(tuple(ELSEWHERE))]
    assert unknown == []
    for command, file in ELSEWHERE.items():
        assert any(text.startswith(command) for text in others), command
        words = re.sub(r"\W+", ".{1,6}", command)  # as one string, or as a list of words
        assert re.search(words, (ROOT / file).read_text()), (command, file)


def test_every_api_has_a_whole_request_and_response() -> None:
    for page in (DOCS / "reference" / "api").glob("*.md"):
        shown = [one for one in commands(page.read_text()) if one.output]
        assert shown, page


def test_no_output_is_left_to_be_generated() -> None:
    assert [one.text for one in all_commands() if one.output == "x"] == []


def test_every_generated_table_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in pages())
    assert set(re.findall(r"<!-- generated: ([\w-]+) -->", text)) == set(tables.TABLES)


def test_every_unit_is_that_of_a_setting() -> None:
    assert set(Settings.model_fields) >= tables.UNITS.keys()


def _amounts(name: str) -> bool:
    return Settings.model_fields[name].annotation in (int, float, int | None, float | None)


def test_every_setting_that_is_a_number_has_a_unit() -> None:
    assert {name for name in Settings.model_fields if _amounts(name)} <= tables.UNITS.keys()


def test_the_readme_is_short_and_shows_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    first, *others = [one.text for one in commands(text)]
    assert len(text.splitlines()) <= 150
    assert first == "make serve"
    assert "make test" in others


def test_the_outputs_of_the_readme_are_those_of_the_pages() -> None:
    """The table of `make serve` is compared with a real start in `tests/test_readme.py`."""
    table = re.compile(r"```text\n(Placement of.*?)```", re.DOTALL)
    readme, local = (
        table.findall(Path(ROOT / name).read_text())
        for name in ("README.md", "docs/getting-started/local.md")
    )
    assert readme == local
