"""One browser for all tests of a process, and a tab for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.chromium import Page, chromium, new_page


@pytest.fixture(scope="session")
def browser() -> Iterator[str]:
    with chromium() as address:
        yield address


@pytest.fixture
def page(browser: str) -> Iterator[Page]:
    with new_page(browser) as page:
        page.resize(1200, 900)
        yield page
