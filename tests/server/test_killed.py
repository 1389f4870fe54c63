"""Servers that are killed at random moments, each followed by a start that gives the right tokens.

The moments are seeded: while a store is packed, while weights are loaded, while requests are
answered, and with another server on the same store. Ten kills run always, a hundred and twenty with
``--full-grid``. A server is a tree of processes. Its first one is killed, as the kubelet does, and
none of the others may survive it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from predictor.tasks.loading import open_tokenizer
from tests.conftest import Checkpoints
from tests.forked import Forked
from tests.server.process import Served
from tests.serving import blocks_on_disk, bring_up

PROMPT, NEW_TOKENS = "abc", 12
SECONDS_FOR_THE_TREE = 20


def slow_disk(seconds: float) -> None:
    """Make every direct read and write wait first, so that there is a moment to be killed in."""
    for name in ("preadv", "pwritev"):
        setattr(os, name, _slowed(getattr(os, name), seconds))


def _slowed(call: Callable[..., int], seconds: float) -> Callable[..., int]:
    def slowed(*args: Any) -> int:
        time.sleep(seconds)
        return call(*args)

    return slowed


@dataclass(frozen=True, slots=True)
class Model:
    """A model, the settings that stream half of it, and its right answer."""

    folder: Path
    offload: Path
    flags: dict[str, Any]
    ids: list[int]
    tokens: list[int]
    text: str

    @classmethod
    def of(cls, folder: Path, offload: Path, **flags: Any) -> Model:
        tokenizer = open_tokenizer(folder, trust_remote_code=False)
        ids = tokenizer(PROMPT)["input_ids"]
        tokens = bring_up(folder, device_map="cpu", **flags).tokens(ids, max_new_tokens=NEW_TOKENS)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        streamed = {
            "device_map": blocks_on_disk(folder),
            "offload_folder": str(offload),
            "offload_store": "always",
        }
        return cls(folder, offload, flags | streamed, ids, tokens, text)

    def check(self) -> None:
        """Start once more, in this process, and check the tokens and the offload folder."""
        up = bring_up(self.folder, **self.flags)
        assert up.sources == {"store"}
        assert up.tokens(self.ids, max_new_tokens=NEW_TOKENS) == self.tokens
        up.weights.release()
        assert not list(self.offload.rglob("*.store.partial"))
        assert not list(self.offload.rglob(".tmp*"))
        for file in self.offload.glob("*.json"):
            json.loads(file.read_bytes())

    def remove_store(self) -> None:
        for file in self.offload.glob("*.store"):
            file.unlink()

    @contextlib.contextmanager
    def served(self, seconds: float) -> Iterator[Served]:
        """Start a server on a disk that is slow."""
        argv = [
            *("serve", "--host=127.0.0.1", "--http_port=0", "--enable_grpc=false"),
            *("--model_name=m", f"--model_dir={self.folder}"),
            *("--max_model_len=128", "--prefill_chunk=16"),
            *(f"--{name}={as_flag(value)}" for name, value in self.flags.items()),
        ]
        log = self.offload.with_name(f"log-{time.monotonic_ns()}")
        with log.open("wb") as stderr:
            before = [(__name__, slow_disk.__name__, seconds)]
            process = Forked(argv, stderr=stderr, before=before)
        try:
            yield Served(process, log, "m")
        finally:
            process.kill()
            process.wait()


def as_flag(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """One that is stored as it is served, one that is cast, and one that is converted."""
    place = tmp_path_factory.mktemp("killed")
    return [
        Model.of(checkpoints("llama"), place / "llama"),
        Model.of(checkpoints("llama"), place / "cast", dtype="bfloat16"),
        Model.of(checkpoints("mixtral"), place / "mixtral"),
    ]


# The moments


def while_packing(model: Model, chance: random.Random) -> None:
    """Kill it between the first byte of a store and some time after the last."""
    model.remove_store()
    with model.served(0.02) as server:
        await_file(model.offload, server)
        kill_after(server, chance.uniform(0, 0.4))


def while_loading(model: Model, chance: random.Random) -> None:
    """Kill it between the opening of its port and some time after it is ready."""
    if chance.random() < 0.5:
        model.remove_store()
    with model.served(0.005) as server:
        assert server.url
        kill_after(server, chance.uniform(0, 1.5))


def while_serving(model: Model, chance: random.Random) -> None:
    """Kill it while it answers, and hashes the weights."""
    with model.served(0.005) as server, asking(server.await_ready(), model):
        kill_after(server, chance.uniform(0, 0.5))


def beside_another(model: Model, chance: random.Random) -> None:
    """Kill one of two servers on one volume; the other goes on with the right answers."""
    if chance.random() < 0.5:
        model.remove_store()
    with model.served(0.002) as first, model.served(0.002) as second:
        killed, other = (first, second) if chance.random() < 0.5 else (second, first)
        with asking(other.await_ready(), model):
            kill_after(killed, chance.uniform(0, 0.5))
            assert answer(other) == model.text


MOMENTS = [while_packing, while_loading, while_serving, beside_another]


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=[pytest.mark.full_grid] if n >= 10 else []) for n in range(120)],
)
def test_after_a_kill_at_any_moment_a_start_gives_the_right_tokens(
    models: list[Model], number: int
) -> None:
    chance = random.Random(number)
    model = models[number // len(MOMENTS) % len(models)]
    MOMENTS[number % len(MOMENTS)](model, chance)
    model.check()


def await_file(folder: Path, server: Served) -> None:
    """Wait for the first byte of a store."""
    while not [*folder.glob("*.store.partial"), *folder.glob("*.store")]:
        assert server.process.poll() is None, server.log
        time.sleep(0.002)


@contextlib.contextmanager
def asking(server: Served, model: Model) -> Iterator[None]:
    """Ask all the time, and check each answer that comes."""
    wrong: list[str] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            try:
                text = answer(server)
            except (httpx.HTTPError, KeyError):
                return  # it was killed
            if text != model.text:
                wrong.append(text)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)
    assert not wrong


def answer(server: Served) -> str:
    response = server.predict(PROMPT, max_new_tokens=NEW_TOKENS)
    return str(response.json()["predictions"][0]["text"])


# Processes


def kill_after(server: Served, seconds: float) -> None:
    """Kill the first process of a server's tree, and check that the others end with it."""
    time.sleep(seconds)
    others = [os.pidfd_open(pid) for pid in descendants(server.process.pid)]
    server.process.kill()
    server.process.wait()
    for descriptor in others:
        ended, _, _ = select.select([descriptor], [], [], SECONDS_FOR_THE_TREE)
        os.close(descriptor)
        assert ended, "a process has survived the first one of its server"
    deadline = time.monotonic() + SECONDS_FOR_THE_TREE
    while group := members(server.process.pid):
        assert time.monotonic() < deadline, f"processes {group} have survived"
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [each for child in children for each in (child, *descendants(child))]


def members(group: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                pids.append(int(stat.parent.name))
    return pids
