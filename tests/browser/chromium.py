"""A real headless Chromium, driven over its DevTools protocol.

Debian's package `chromium` is enough: no driver, and no download.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.skips import skip_or_fail

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu"),
    *("--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--force-color-profile=srgb", "--lang=en-US"),
)
_SECONDS = 60
_KEYS = {
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Space": {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
    "ArrowRight": {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39},
}
_CONTROL = 2


class Page:
    """A tab of the browser.

    Attributes:
        urls: All that it has requested.
        errors: What went to its console as an error.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.urls: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        """Calls a method of the protocol, and returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while (event := json.loads(self._connection.recv(_SECONDS))).get("id") != number:
            self._take(event)
        assert "error" not in event, event
        return event["result"]

    def _take(self, event: dict[str, Any]) -> None:
        values = event.get("params", {})
        match event["method"]:
            case "Network.requestWillBeSent":
                self.urls.append(values["request"]["url"])
            case "Runtime.exceptionThrown":
                details = values["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if values["type"] in ("error", "assert"):
                self.errors.append(str([each.get("value") for each in values["args"]]))
            case "Log.entryAdded" if values["entry"]["level"] == "error":
                self.errors.append(f"{values['entry']['text']} ({values['entry'].get('url')})")

    def open(self, url: str) -> None:
        """Goes to a URL."""
        result = self.send("Page.navigate", url=url)
        assert "errorText" not in result, result

    def run(self, expression: str) -> Any:
        """Returns the value of an expression in JavaScript."""
        result = self._evaluate(expression)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def _evaluate(self, expression: str) -> Any:
        return self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )

    def wait(self, expression: str, seconds: float = 30) -> Any:
        """Waits until an expression is truthy, and returns its value; it may fail until then."""
        deadline = time.monotonic() + seconds
        while not (value := (result := self._evaluate(expression))["result"].get("value")):
            assert time.monotonic() < deadline, f"{expression} stayed {result}; {self.errors}"
            time.sleep(0.02)
        return value

    def text(self, selector: str) -> str:
        """Returns the text of an element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def click(self, selector: str) -> None:
        """Clicks on an element, once it is shown and can be used."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"{element}?.checkVisibility() && !{element}.disabled")
        self.run(f"{element}.click()")

    def fill(self, selector: str, text: str) -> None:
        """Replaces what is in a field."""
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.type(text)

    def type(self, text: str) -> None:
        """Writes a text where the focus is."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, *, control: bool = False) -> None:
        """Presses a key."""
        values: dict[str, Any] = {**_KEYS[key], "modifiers": _CONTROL if control else 0}
        if control:
            values.pop("text", None)
        self.send("Input.dispatchKeyEvent", type="keyDown", **values)
        self.send("Input.dispatchKeyEvent", type="keyUp", **values)

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Sets the size of the window, in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_phone,
        )

    def prefer(self, scheme: str) -> None:
        """Sets the colour scheme that the user prefers, ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, file: Path) -> None:
        """Writes what the window shows as WebP."""
        shot = self.send("Page.captureScreenshot", format="webp", quality=80)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def chromium() -> Iterator[str]:
    """Starts a browser, gives the address of its DevTools, and ends it.

    Skips without one, and fails if ``REQUIRE_BROWSER=1``.
    """
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        skip_or_fail("no Chromium is installed", "REQUIRE_BROWSER")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses root's otherwise
        command = [program, *_FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield _address(process, Path(profile) / "DevToolsActivePort")
            finally:
                process.terminate()


@contextlib.contextmanager
def new_page(address: str) -> Iterator[Page]:
    """Opens a tab with a profile of its own, and closes it."""
    target = httpx.put(f"http://{address}/json/new?about:blank", timeout=_SECONDS).json()
    url = target["webSocketDebuggerUrl"]
    with connect(url, max_size=None, proxy=None, close_timeout=1) as connection:
        yield Page(connection)
    httpx.get(f"http://{address}/json/close/{target['id']}", timeout=_SECONDS)


def _address(process: subprocess.Popen[bytes], file: Path) -> str:
    deadline = time.monotonic() + _SECONDS
    while not file.exists() or "\n" not in file.read_text():
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        assert time.monotonic() < deadline, "Chromium does not start"
        time.sleep(0.05)
    return f"127.0.0.1:{file.read_text().splitlines()[0]}"
