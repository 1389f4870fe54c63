"""Progress of a copy, in the log and on a terminal."""

from __future__ import annotations

import logging
import sys

import pytest

from predictor.migration import progress
from predictor.migration.progress import CopyProgress

MIB = 1024**2


def test_the_log_has_a_line_every_few_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with CopyProgress(4 * MIB) as copy:
        for now[0] in (1.0, 6.0, 8.0, 12.0):
            copy.add(MIB)

    assert caplog.messages == ["Copied 2.00 MiB of 4.00 MiB", "Copied 4.00 MiB of 4.00 MiB"]


def test_a_terminal_has_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with CopyProgress(4 * MIB) as copy:
        copy.add(4 * MIB)

    assert "importing: 100%" in capsys.readouterr().err
