"""A forked command is a process like one of `subprocess`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked


@pytest.fixture
def asleep() -> Iterator[forked.Forked]:
    """A process that would take a minute."""
    process = forked.Forked(["--version"], before=[("time", "sleep", 60)])
    yield process
    process.kill()
    process.wait()


def test_what_it_writes_and_its_exit_code_are_kept() -> None:
    done = forked.run(["--version"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.1.0\n", "")
    done = forked.run(["serve", "--bogus_flag"])
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("predictor: Unknown flag --bogus_flag")
    with pytest.raises(subprocess.CalledProcessError):
        forked.run(["serve", "--bogus_flag"], check=True)


def test_it_has_this_process_environment_and_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREDICTOR_MODEL_DIR", "/nowhere")
    assert "There is no model directory /nowhere" in forked.run(["plan"]).stderr
    monkeypatch.delenv("PREDICTOR_MODEL_DIR")
    (tmp_path / "here").mkdir()
    done = forked.run(["plan", "here"], cwd=tmp_path)
    assert "here" in done.stderr
    assert "There is no model directory" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_and_is_its_exit_code(
    asleep: forked.Forked, number: signal.Signals
) -> None:
    assert asleep.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        asleep.wait(0.01)
    until = time.monotonic() + 10  # the process makes its group after it was forked
    while os.getpgid(asleep.pid) != asleep.pid and time.monotonic() < until:
        time.sleep(0.01)
    assert os.getpgid(asleep.pid) == asleep.pid != os.getpgid(0)
    asleep.send_signal(number)
    assert asleep.wait(10) == asleep.poll() == asleep.returncode == -number
    asleep.send_signal(number)


def test_two_run_at_a_time(asleep: forked.Forked) -> None:
    assert forked.run(["--version"]).returncode == 0
    assert asleep.poll() is None
