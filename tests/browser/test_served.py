"""The page of a real server: from its first second to a reply, and the pictures in the docs.

``UPDATE_SCREENSHOTS=1`` writes the pictures of `docs/getting-started/` anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Page
from tests.encoding.checkpoints import make_encoder
from tests.server.process import Served, serve

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "docs" / "getting-started"
MOST_BYTES = 120_000
PROMPT = "Today the weather is really nice and I am planning on"
GENERATES = "/tokens.s([1-9]|0\\.)/.test(document.getElementById('figures').textContent)"
"""Whether the page shows a number of tokens/s."""
SIZES = {"page.webp": (1200, 720), "page-phone.webp": (360, 720)}


@pytest.fixture(scope="module")
def demo() -> Iterator[Served]:
    """The server of `make serve`, on a free port; it is loading still."""
    with serve(
        ROOT / "examples" / "demo-model",
        *("--ui", "--max_model_len=256", "--prefill_chunk=64", '--max_memory={"cpu": "8MiB"}'),
        name="demo",
    ) as served:
        yield served


def test_the_page_is_there_before_the_model_and_follows_it_to_a_streamed_reply(
    page: Page, demo: Served
) -> None:
    page.open(f"{demo.url}/")
    page.wait("document.getElementById('progress-text').checkVisibility()")
    assert "is ready after" not in demo.log
    page.wait("document.getElementById('playground').checkVisibility()", 200)

    page.click("#send")
    page.wait("document.getElementById('reply-note').textContent", 60)

    assert page.text("#reply").startswith(f"{PROMPT} going to the park")
    assert "Limited by main memory: 3.39 MiB (58 %) are streamed" in page.text("#picture svg")
    page.wait(GENERATES)
    assert "read from disk" in page.text("#figures")
    assert page.errors == []
    assert [url for url in page.urls if not url.startswith(demo.url)] == []


def test_the_address_of_the_page_is_the_first_line_of_the_log(demo: Served) -> None:
    first = demo.log.splitlines()[0]

    assert first.endswith(f"Open {demo.url}/ in a browser")


def test_a_chat_is_answered(page: Page, demo: Served) -> None:
    demo.await_ready()
    page.open(f"{demo.url}/")
    page.click("#modes label:nth-of-type(2) input")

    page.click("#send")

    assert page.wait("document.querySelector('.turn.assistant span')?.textContent", 60)
    page.wait("!document.getElementById('send').disabled", 60)
    assert page.text("#request-error") == ""
    assert page.errors == []


@pytest.mark.parametrize("name", SIZES)
def test_the_pictures_of_the_docs_show_the_page(
    page: Page, demo: Served, tmp_path: Path, name: str
) -> None:
    demo.await_ready()
    width, height = SIZES[name]
    page.resize(width, height, is_phone="phone" in name)
    page.prefer("dark" if "phone" in name else "light")
    page.open(f"{demo.url}/")
    page.click("#send")
    page.wait("document.getElementById('reply-note').textContent", 60)
    page.wait("document.querySelector('#picture svg')?.checkVisibility()")
    page.wait(GENERATES)
    if "phone" in name:
        page.run("document.getElementById('playground').scrollIntoView({behavior: 'instant'})")
    is_updated = os.environ.get("UPDATE_SCREENSHOTS") == "1"
    fresh = (SHOTS if is_updated else tmp_path) / name

    page.screenshot(fresh)

    assert fresh.stat().st_size < MOST_BYTES
    assert size_of(fresh) == size_of(SHOTS / name) == (width, height)


def size_of(file: Path) -> tuple[int, int]:
    """Width and height of a WebP file of the extended form (RFC 9649, section 2.7)."""
    header = file.read_bytes()[:30]
    assert header[:4] + header[8:16] == b"RIFFWEBPVP8X"
    width, height = (int.from_bytes(header[at : at + 3], "little") + 1 for at in (24, 27))
    return width, height


def test_embeddings_are_compared(page: Page, tmp_path: Path) -> None:
    make_encoder(tmp_path / "model", "bert", "text_embedding", labels=2)
    flags = ("--ui", "--task=text_embedding", "--max_model_len=128")
    with serve(tmp_path / "model", *flags) as served:
        served.await_ready()
        page.open(f"{served.url}/")
        page.click("#send")
        page.wait("document.querySelector('#reply table')?.checkVisibility()")
        cells = page.run("[...document.querySelectorAll('#reply td')].map(e => e.textContent)")

    assert [cells[0], cells[4], cells[8]] == ["100 %"] * 3
    assert cells[1] == cells[3]
    assert page.errors == []
