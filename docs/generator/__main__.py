"""Rewrite the generated parts of all pages in place."""

from __future__ import annotations

from docs.generator.examples import Examples
from docs.generator.pages import pages
from docs.generator.tables import with_tables


def main() -> None:
    """Write every page whose generated parts have changed, and name it."""
    with Examples() as examples:
        for page in pages():
            text = page.read_text()
            fresh = examples.with_outputs(with_tables(text))
            if fresh != text:
                page.write_text(fresh)
                print(f"written: {page}")


if __name__ == "__main__":
    main()
