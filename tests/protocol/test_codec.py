"""Large bodies are decoded in a process of its own, small ones at once."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import textwrap
from array import array
from pathlib import Path

import pytest

from predictor.protocol.http.codec import CodecThreads, codec_of
from predictor.tasks.answers import Completion, Vector

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


VECTORS = """
    from array import array
    from predictor.protocol.kserve import grpc_server, rest_codec, rest_inference, v1, v2
    from predictor.protocol.openai import embeddings_rerank as lists
    from predictor.tasks.answers import Vector
    vectors = tuple(Vector(array("f", [number, 0.1]), 3) for number in range(3))
    form = v2.ResponseForm({"embedding": "FP32"}, "id", (3,), (), raw=False)
    name = {"model_name": "m", "model_version": "1"}
"""


@pytest.mark.parametrize(
    "encode",
    [
        "lists._embed_body, vectors",
        "lists._embeddings_body, vectors, True, 'm'",
        "partial(v1.encode_body, predictions='objects'), vectors",
        "partial(grpc_server._encode, **name), vectors, form",
        "partial(rest_inference._encode_infer, **name), vectors, form, "
        "rest_codec.BinaryOutputs(True, {})",
    ],
)
def test_vectors_are_encoded_in_the_process_as_they_are_here(encode: str) -> None:
    assert run(
        "from functools import partial\n"
        + textwrap.dedent(VECTORS)
        + textwrap.dedent(f"""
            async def main():
                function, *arguments = {encode}
                # Only the process has this function's results; what fails there is done here.
                result = await codec._call(function, arguments)
                print(result == function(*arguments))
            asyncio.run(main())
        """)
    ) == ["True"]


def test_answers_of_many_objects_stay_in_this_process() -> None:
    vector = Vector(array("f", [0.5]), 1)
    process = CodecThreads()
    assert codec_of([vector], process) is process
    assert codec_of([Completion("a", "eos_token", 1, 2)], process) is not process


def test_a_vector_is_pickled_without_loss() -> None:
    vector = Vector(array("f", [0.1, 2.0]), 3)
    assert pickle.loads(pickle.dumps(vector)) == vector
