"""The page in a real browser, before a model that echoes prompts upper-cased, letter by letter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from predictor.errors import RequestError
from predictor.mixture.heat import LayerHeat
from predictor.placement.plan import PlacementOptions
from predictor.placement.planner import plan
from predictor.protocol.http.authentication import ApiKeys
from tests.browser.chromium import Page
from tests.placement.small import footprint, pod
from tests.protocol.stub import Served, serve

PLACEMENT = plan(footprint(), pod(57, memory=14), PlacementOptions())
IS_READY = "document.getElementById('playground').checkVisibility()"
IS_DONE = "document.getElementById('send').disabled === false"


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with serve(ui=True) as served:
        served.model.placement = PLACEMENT
        yield served


@pytest.fixture
def echo(running: Served) -> Iterator[Served]:
    yield running
    running.model.ready = True
    running.model.held = False
    running.model.failure = running.model.late_failure = None
    running.model.heat = ()
    running.model.loading = {}


@pytest.fixture(scope="module")
def with_keys() -> Iterator[Served]:
    with serve(ui=True, keys=ApiKeys(["right"])) as served:
        served.model.placement = PLACEMENT
        yield served


def opened(page: Page, served: Served) -> Page:
    page.open(f"{served.url}/")
    page.wait(IS_READY)
    return page


def assert_clean(page: Page, served: Served) -> None:
    assert page.errors == []
    assert [url for url in page.urls if not url.startswith(f"{served.url}/")] == []


def test_a_reply_is_streamed_piece_by_piece(page: Page, echo: Served) -> None:
    opened(page, echo)
    page.run(
        "window.lengths = new Set(); new MutationObserver(() => lengths.add("
        "document.querySelector('#reply span:last-child')?.textContent.length))"
        ".observe(document.getElementById('reply'), {childList: true, subtree: true})"
    )

    page.fill("textarea[name=prompt]", "hello there")
    page.click("#send")
    page.wait("document.querySelector('#reply span:last-child')?.textContent === 'HELLO THERE'")

    assert page.run("lengths.size") > 3
    assert page.text("#reply .prompt") == "hello there"
    assert page.wait("document.getElementById('reply-note').textContent").startswith("first piece")
    assert_clean(page, echo)


def test_a_reply_can_be_stopped(page: Page, echo: Served) -> None:
    opened(page, echo)
    echo.model.held = True

    page.click("#send")
    page.click("#stop")

    page.wait(IS_DONE)
    assert page.text("#request-error") == ""
    assert_clean(page, echo)


def test_chat_sends_all_turns_before(page: Page, echo: Served) -> None:
    opened(page, echo)
    page.click("#modes label:nth-of-type(2) input")
    for text in ("one", "two"):
        page.fill("textarea[name=message]", text)
        page.click("#send")
        page.wait(f"{IS_DONE} && document.querySelector('textarea').value === ''")

    answers = page.run("[...document.querySelectorAll('.turn span')].map(e => e.textContent)")
    assert answers == ["one", "USER: ONE", "two", "USER: ONE ASSISTANT: USER: ONE USER: TWO"]
    page.click("#clear")
    assert page.text("#turns") == ""
    assert_clean(page, echo)


def test_an_error_is_the_servers_sentence(page: Page, echo: Served) -> None:
    opened(page, echo)
    echo.model.late_failure = ValueError("a secret")

    page.fill("textarea[name=prompt]", "x")
    page.click("#send")

    sentence = page.wait("document.getElementById('request-error').textContent")
    assert "secret" not in sentence
    assert page.text("#reply span:last-child") == "X"


def test_a_request_that_is_refused_is_said_beside_the_form(page: Page, echo: Served) -> None:
    opened(page, echo)
    page.click("#modes label:nth-of-type(3) input")
    echo.model.failure = RequestError("The temperature is too high.")

    page.click("#send")

    assert page.wait("document.getElementById('request-error').textContent") == (
        "The temperature is too high."
    )


def test_the_curl_line_works_in_a_shell(page: Page, echo: Served) -> None:
    opened(page, echo)
    page.fill("textarea[name=prompt]", 'it\'s "so" $HOME')
    page.click("#send")
    page.wait(IS_DONE)

    done = subprocess.run(
        ["bash", "-c", f"{page.text('#curl')} --silent"], capture_output=True, text=True, timeout=60
    )

    events = [
        json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")
    ]
    assert "".join(event["choices"][0]["text"] for event in events) == 'IT\'S "SO" $HOME'


def test_the_python_program_works(page: Page, echo: Served) -> None:
    opened(page, echo)
    page.fill("textarea[name=prompt]", 'it\'s "so"\n')
    page.click("#send")
    page.wait(IS_DONE)

    done = subprocess.run(
        [sys.executable, "-c", page.text("#python")], capture_output=True, text=True, timeout=100
    )

    assert done.stdout == 'IT\'S "SO"\n', done.stderr


def test_progress_is_shown_while_it_loads_and_the_page_follows(page: Page, echo: Served) -> None:
    gib = 1024**3
    echo.model.ready = False
    echo.model.loading = {
        "phase": "loading",
        "bytes_done": 3 * gib,
        "bytes_total": 4 * gib,
        "blocks_done": 5,
        "blocks_total": 8,
        "bytes_per_second": gib,
        "seconds_left": 1.0,
    }
    page.open(f"{echo.url}/")

    page.wait("document.getElementById('progress').value === 0.75")
    assert page.text("#progress-text") == (
        "loading, 3.00 GiB of 4.00 GiB, block 5 of 8, 1.00 GiB/s, 1.0 s left"
    )
    page.wait("document.querySelector('#picture svg')?.checkVisibility()")
    assert page.text("#status") == "loading"
    assert not page.run(IS_READY)

    echo.model.ready = True
    page.wait(IS_READY)
    assert page.text("#status") == "ready"
    assert page.run("document.getElementById('loading').checkVisibility()")

    echo.model.loading = {}  # all weights that stay have arrived
    page.wait("!document.getElementById('loading').checkVisibility()")
    assert page.text("#status") == "ready"
    assert_clean(page, echo)


def test_a_server_that_drains_is_not_shown_as_loading(page: Page, echo: Served) -> None:
    opened(page, echo)
    echo.model.ready = False

    page.wait("document.getElementById('status').textContent.startsWith('not ready')")
    assert not page.run("document.getElementById('loading').checkVisibility()")


def test_a_key_is_used_and_kept_in_memory_alone(page: Page, with_keys: Served) -> None:
    page.open(f"{with_keys.url}/")
    page.wait("document.getElementById('key-form').checkVisibility()")
    assert page.errors == []

    page.fill("#key", "wrong")
    page.click("#key-form button")
    assert "no valid API key" in page.wait("document.getElementById('key-error').textContent")
    assert not page.run(IS_READY)

    page.fill("#key", "right")
    page.click("#key-form button")
    page.wait(IS_READY)
    page.fill("textarea[name=prompt]", "hello")
    page.click("#send")
    page.wait("document.querySelector('#reply span:last-child')?.textContent === 'HELLO'")
    assert not page.run("document.getElementById('key-form').checkVisibility()")
    assert page.run("document.getElementById('key').value") == ""
    stored = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    assert page.run(stored) == '[{},{},""]'
    assert '"Authorization: Bearer $API_KEY"' in page.text("#curl")
    assert "right" not in page.run("document.documentElement.outerHTML")
    assert not any("right" in url for url in page.urls)


def test_everything_can_be_done_with_the_keyboard(page: Page, echo: Served) -> None:
    opened(page, echo)
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    page.press("Enter")
    names = []
    for _ in range(5):
        page.press("Tab")
        names.append(page.run("document.activeElement.name || document.activeElement.id"))
    assert names == ["mode", "prompt", "max-tokens", "temperature", "send"]

    page.run("document.querySelector('input[name=mode]').focus()")
    page.press("ArrowRight")
    assert page.run("document.querySelector('textarea').name") == "message"
    page.press("Tab")
    page.run("document.activeElement.select()")
    page.type("keys")
    page.press("Enter", control=True)
    page.wait("document.querySelector('.turn.assistant span')?.textContent === 'USER: KEYS'")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert_clean(page, echo)


def test_it_fits_a_phone(page: Page, echo: Served) -> None:
    page.resize(320, 640, is_phone=True)
    opened(page, echo)
    page.fill("textarea[name=prompt]", "long" * 100)
    page.click("#send")
    page.wait(IS_DONE)
    page.run("document.getElementById('snippets').open = true")

    assert page.run("document.documentElement.scrollWidth") == 320
    low = "[...document.querySelectorAll('button')].filter(b => b.checkVisibility())"
    assert page.run(f"Math.min(...{low}.map(b => b.offsetHeight))") >= 44


CONTRAST = """(() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
  };
  const texts = 'h1,h2,label,dt,dd,.hint,p,summary,pre,#send,svg text';
  const shown = [...document.querySelectorAll(texts)].filter(
    (one) => one.checkVisibility() && one.textContent);
  return Math.min(...shown.map((one) => {
    const style = getComputedStyle(one);
    const pair = [light(one.tagName === 'text' ? style.fill : style.color), light(ground(one))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  }));
})()"""
"""The least contrast of a text with its ground, by WCAG 2."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast_in_light_and_dark(
    page: Page, echo: Served, scheme: str
) -> None:
    page.prefer(scheme)
    opened(page, echo)
    page.wait("document.querySelector('#picture svg')?.checkVisibility()")

    assert page.run(CONTRAST) >= 4.5
    is_dark = page.run("matchMedia('(prefers-color-scheme: dark)').matches")
    assert is_dark == (scheme == "dark")


def test_every_field_and_button_has_a_name(page: Page, echo: Served) -> None:
    opened(page, echo)
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in ("button", "textbox", "radio", "spinbutton", "image", "region")
        and not node.get("name", {}).get("value")
    ]

    assert nameless == []
    roles = {node["role"]["value"] for node in nodes}
    assert {"main", "heading", "status", "textbox"} <= roles


def test_the_heat_of_experts_is_shown_where_there_are_any(page: Page, echo: Served) -> None:
    echo.model.heat = (LayerHeat("a", (9, 1, 0, 0), {}), LayerHeat("b", (5, 5, 0, 0), {}))
    opened(page, echo)

    page.wait("document.getElementById('experts').checkVisibility()")
    size = "[document.getElementById('heat').width, document.getElementById('heat').height]"
    assert page.run(size) == [4, 2]
    assert "gets 70 % of its tokens" in page.text("#heat-text")


def connect(page: Page, *, is_offline: bool) -> None:
    """Take the network from a page, or give it back."""
    rates = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.send("Network.emulateNetworkConditions", offline=is_offline, **rates)


def test_a_server_that_is_gone_is_said_and_comes_back(page: Page, echo: Served) -> None:
    opened(page, echo)
    connect(page, is_offline=True)
    page.wait("document.getElementById('status').textContent === 'The server does not answer.'")

    connect(page, is_offline=False)
    page.wait("document.getElementById('status').textContent === 'ready'")
