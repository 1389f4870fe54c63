"""The engine process and the one that answers requests: real processes, and how they end."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import predictor
from tests.conftest import Checkpoints
from tests.server.process import Served, serve

FLAGS = ("--max_model_len=64", "--prefill_chunk=16")


def engine_of(server: Served) -> int:
    """The engine process, which is the first child."""
    pid = server.process.pid
    child, *_ = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_engine_process_ends_requests_and_server_with_its_signal(
    checkpoints: Checkpoints,
) -> None:
    with (
        serve(checkpoints("bloom"), *FLAGS, gated=True) as server,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        server.await_ready()
        with server.gate.closed():
            running = pool.submit(server.predict, "a long one", max_new_tokens=20)
            server.gate.await_pass()
            os.kill(engine_of(server), signal.SIGKILL)
            answer = running.result()
        assert answer.status_code == 503
        sentence = "The engine process was killed (signal 9, as when memory runs out)"
        assert answer.json()["error"] == f"{sentence}."
        assert server.process.wait(30) == 1
        assert server.log.strip().splitlines()[-1] == f"predictor: {sentence}."


def test_an_engine_process_that_is_killed_while_it_loads_is_one_sentence(
    checkpoints: Checkpoints,
) -> None:
    with serve(checkpoints("bloom"), *FLAGS, gated=True) as server, server.gate.closed():
        assert server.url
        os.kill(engine_of(server), signal.SIGKILL)
        assert server.process.wait(30) == 1
        last = server.log.strip().splitlines()[-1]
        assert last.endswith("(signal 9, as when memory runs out) while it loaded the model.")


def test_the_engine_process_ends_with_the_one_that_answers(checkpoints: Checkpoints) -> None:
    with serve(checkpoints("bloom"), *FLAGS, cold=True) as server:
        engine = engine_of(server.await_ready())
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "libtorch" not in maps  # it answers without torch
        assert "libtorch" in Path(f"/proc/{engine}/maps").read_text()
        assert server.predict("hello", max_new_tokens=2).status_code == 200
        server.process.kill()
        deadline = time.monotonic() + 20
        while is_alive(engine):
            assert time.monotonic() < deadline, "the engine process goes on"
            time.sleep(0.05)


def test_the_engine_process_has_the_package_of_the_one_that_answers(tmp_path: Path) -> None:
    """A checkout is not installed, and the working directory is not looked in."""
    package = Path(predictor.__file__).parent
    shutil.copytree(package, tmp_path / "predictor", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "predictor" / "engine_start.py").write_text("print(__file__)")
    program = (
        "import socket, predictor.engine_process as process\n"
        "ours, theirs = socket.socketpair()\n"
        "process.launch(theirs).wait(60)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == str(tmp_path / "predictor" / "engine_start.py")
