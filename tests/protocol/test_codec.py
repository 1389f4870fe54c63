"""Large bodies are decoded in a process of its own, small ones at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(script: str) -> list[str]:
    """Run a script in a process without threads, which has a codec."""
    before = """
        import asyncio, operator, os, signal, time
        from predictor.errors import RequestError
        from predictor.protocol.http.codec import CodecProcess
        from predictor.protocol.openai.request import decode_body, decode_completion

        codec = CodecProcess()
        codec.start()
        LARGE = 2**20
    """
    text = textwrap.dedent(before) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_is_large_is_done_in_the_process_and_what_is_small_is_not() -> None:
    small, large, own, codec, niceness = run("""
        async def main():
            for size in (100, LARGE):
                print(await codec.run(size, os.getpid))
            print(os.getpid(), codec.pid, sep="\\n")
            print(await codec.run(LARGE, os.getpriority, os.PRIO_PROCESS, 0))
        asyncio.run(main())
    """)
    assert (small, large) == (own, codec)
    assert int(niceness) == os.getpriority(os.PRIO_PROCESS, 0) + 10


def test_token_ids_come_back_as_an_array() -> None:
    assert run("""
        async def main():
            body = b'{"model": "m", "prompt": [' + b"7," * 99_999 + b"8]}"
            name, call = await codec.run(len(body), decode_body, body, decode_completion)
            ids = call.request.prompts[0].text
            print(name, ids.typecode, len(ids), ids[0], ids[-1])
        asyncio.run(main())
    """) == ["m i 100000 7 8"]


def test_a_mistake_in_a_body_is_the_same_error() -> None:
    assert run("""
        async def main():
            try:
                await codec.run(LARGE, decode_body, b"{" * LARGE, decode_completion)
            except RequestError as error:
                print(error)
        asyncio.run(main())
    """)[0].startswith("The body is not valid JSON")


def test_calls_at_one_time_get_their_own_results() -> None:
    assert run("""
        async def main():
            calls = (codec.run(LARGE, operator.mul, n, 10) for n in range(20))
            print(*await asyncio.gather(*calls))
        asyncio.run(main())
    """) == [" ".join(str(10 * n) for n in range(20))]


def test_after_the_end_of_the_process_threads_decode() -> None:
    own, last, again = run("""
        async def main():
            print(os.getpid())
            running = asyncio.create_task(codec.run(LARGE, os.getpid))
            waiting = asyncio.create_task(codec.run(LARGE, time.sleep, 1.0))
            await asyncio.sleep(0.2)
            os.kill(codec.pid, signal.SIGKILL)
            await running
            print(await waiting)
            print(await codec.run(LARGE, os.getpid))
        asyncio.run(main())
    """)
    assert last == "None"
    assert again == own


def test_it_ends_with_the_process_that_it_decodes_for() -> None:
    (pid,) = run("print(codec.pid)")
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        asyncio.run(asyncio.sleep(0.05))
    pytest.fail("it runs on")
