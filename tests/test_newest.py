"""The versions of dependencies: those of the constraints, and the newest."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.newest import unbounded

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned():
    """Returns the versions that the constraints give each package; markers may give several."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = {}
    for line in lines[1:]:
        requirement = Requirement(line)
        versions.setdefault(requirement.name, []).append(str(requirement.specifier)[2:])
    return versions


@pytest.mark.parametrize("text", PROJECT["dependencies"])
def test_the_constraints_are_within_the_bounds(text):
    requirement = Requirement(text)

    assert all(requirement.specifier.contains(each) for each in pinned()[requirement.name])


def test_the_newest_versions_have_no_upper_bound():
    requirements = [Requirement(text) for text in unbounded(ROOT / "pyproject.toml")]

    operators = {each.operator for one in requirements for each in one.specifier}
    assert operators == {">="}
    assert [each.name for each in requirements[: len(PROJECT["dependencies"])]] == [
        Requirement(text).name for text in PROJECT["dependencies"]
    ]


def test_lower_bounds_extras_and_markers_stay(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\ndependencies = ["a>=1.2,<2", "b", "c[x]>=1"]\n'
        "[project.optional-dependencies]\ndev = [\"d>=2,<=3 ; sys_platform == 'linux'\"]\n"
    )

    assert unbounded(project) == ["a>=1.2", "b", "c[x]>=1", "d>=2 ; sys_platform == 'linux'"]
