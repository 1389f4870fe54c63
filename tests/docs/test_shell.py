"""The kubectl and helm commands of the pages name files and objects that exist."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from docs.generator.pages import DOCS, ROOT, pages
from tests.deploy.cases import STORIES
from tests.deploy.helm import APIS, CHART, helm, loaded

FOLDERS = ("manifests", "helm", "benchmarks", "examples", "docs", ".ci", ".github")


def lines() -> Iterator[tuple[str, str]]:
    """Yield the commands of all bash blocks, each with the page that has it."""
    for page in pages():
        for block in re.findall(
            r"^ *```bash\n(.*?)```", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            for line in re.split(r"\n *(?=kubectl |helm |curl )", f"\n{block}"):
                if line.strip():
                    yield str(page.relative_to(ROOT)), line.strip()


COMMANDS = list(dict.fromkeys(line for _, line in lines()))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_known_and_its_files_exist(command: str) -> None:
    program, verb, *rest = shlex.split(command)
    assert program in ("kubectl", "helm", "curl")
    for flag, value in itertools.pairwise(rest):
        if (verb, flag) == ("apply", "-k"):
            assert (ROOT / value / "kustomization.yaml").is_file()
        elif (verb, flag) == ("apply", "-f"):
            assert list(yaml.safe_load_all((ROOT / value).read_text()))
    if (program, verb) == ("helm", "install"):
        assert rendered(command)


def rendered(command: str) -> list[dict[str, object]]:
    """Return the objects that a `helm install` command of a page would create."""
    offered = [f"--api-versions={api}" for api in APIS]
    words = [word.replace("helm/", f"{CHART}/") for word in shlex.split(command)[2:]]
    words = [str(CHART) if word == "./helm" else word for word in words]
    done = helm("template", *words, *offered)
    assert done.returncode == 0, done.stderr
    return loaded(done.stdout)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_of_a_page_exists(page: Path) -> None:
    folders = "|".join(re.escape(folder) for folder in FOLDERS)
    named = set(re.findall(rf"(?<![\w/.:-])(?:{folders})/[\w./-]*\w", page.read_text()))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_example_is_described() -> None:
    text = (DOCS / "guides" / "manifests.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)) == STORIES.keys()
