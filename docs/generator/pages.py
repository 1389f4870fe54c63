"""Find the pages of the documentation."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository's root."""

DOCS = ROOT / "docs"


def pages() -> list[Path]:
    """Return the README and all pages of the site, in a stable order."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
