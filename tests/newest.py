"""Prints what the tests need, without upper bounds, for ``make test-latest``.

It runs before anything is installed, so it uses the standard library alone.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

_UPPER_BOUND = re.compile(r",?\s*<=?\s*[\w.*+!]+")


def unbounded(project: Path) -> list[str]:
    """Returns the requirements of a ``pyproject.toml`` and of its extra `dev`."""
    table = tomllib.loads(project.read_text())["project"]
    requirements = table["dependencies"] + table["optional-dependencies"]["dev"]
    return [_UPPER_BOUND.sub("", requirement) for requirement in requirements]


if __name__ == "__main__":
    print("\n".join(unbounded(Path("pyproject.toml"))))
