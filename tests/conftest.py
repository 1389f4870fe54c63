"""Checkpoints that several test modules share, made once for a session, and how tests are spread.

Two processes run the tests (`make test`), one module at a time; so what must not meet, a port for
instance, is in one module. What is marked ``full_grid`` runs with ``--full-grid`` alone, and so do
many examples of properties.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Two test processes and the servers they start share few cores, and small models gain nothing
# from more threads; set before torch reads it, for this process and those it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without bytecode each of them compiles torch and transformers anew, which takes 10 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import hypothesis
import pytest

sys.dont_write_bytecode = False

if TYPE_CHECKING:
    import torch

Checkpoints = Callable[..., Path]

_STATUS = pytest.StashKey[int]()

_FIRST = (
    "tests/test_benchmarks.py",
    "tests/server/test_memory_limit.py",
    "tests/weights/test_store.py",
    "tests/engine/test_contamination.py",
    "tests/server/",
    "tests/test_readme.py",
)
"""What takes longest, begun first so that no process is left alone with it at the end."""

# No deadline for an example: other processes take the time that one has.
hypothesis.settings.register_profile("unhurried", hypothesis.settings.default, deadline=None)
hypothesis.settings.register_profile(
    "full", hypothesis.settings.default, deadline=None, max_examples=500
)


@pytest.fixture(autouse=True)
def _root_level() -> Iterator[None]:
    """Restore the level of all loggers, which commands set when they run in a test's process."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-grid", action="store_true", help="run every combination and example")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("full" if config.getoption("--full-grid") else "unhurried")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full-grid"):
        left_out = [item for item in items if item.get_closest_marker("full_grid")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in set(left_out)]
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    turns = (turn for turn, name in enumerate(_FIRST) if item.nodeid.startswith(name))
    return next(turns, len(_FIRST))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process as the predictor's own commands do, without the teardown of libraries.

    Engines, gRPC and torch have threads that are still there, and Python has been seen to wait for
    ever in that teardown, after all tests had passed.
    """
    if _STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])


@pytest.fixture(scope="session")
def full_grid(pytestconfig: pytest.Config) -> bool:
    """Whether ``--full-grid`` is given."""
    return bool(pytestconfig.getoption("--full-grid"))


class _Folders:
    """Folders that are written once, by the process that first asks for them."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self._root = root

    def get(self, name: str, write: Callable[[Path], object]) -> Path:
        folder = self._root / name
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                made = self._root / f"{name}.made"
                write(made)
                made.rename(folder)
        return folder


@pytest.fixture(scope="session")
def shared_folders(tmp_path_factory: pytest.TempPathFactory) -> _Folders:
    """Folders that the processes which run the tests have in common."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return _Folders(root / "checkpoints")


@pytest.fixture(scope="session")
def checkpoints(shared_folders: _Folders) -> Checkpoints:
    """Gives the folder of a checkpoint, made at its first use: ``checkpoints("bloom", ...)``."""

    def make(
        architecture: str,
        *,
        dtype: torch.dtype | None = None,
        shards: bool = True,
        pickle: bool = False,
    ) -> Path:
        import torch

        from tests.checkpoints import make_checkpoint

        dtype = dtype or torch.float32
        kind = f"{_title(dtype)}-{'shards' if shards else 'single'}"
        return shared_folders.get(
            f"{architecture}-{kind}{'-pickle' if pickle else ''}",
            lambda folder: make_checkpoint(
                folder, architecture, dtype=dtype, shards=shards, pickle=pickle
            ),
        )

    return make


@pytest.fixture(scope="session")
def mixtures(shared_folders: _Folders) -> Checkpoints:
    """Gives the same of a family of mixtures: ``mixtures("qwen3_moe", fused=True)``."""

    def make(name: str, *, dtype: torch.dtype | None = None, fused: bool = False) -> Path:
        import torch

        from tests.mixture.families import make_family

        dtype = dtype or torch.float32
        kind = f"{_title(dtype)}-{'fused' if fused else 'published'}"
        return shared_folders.get(
            f"mixture-{name.replace(', ', '-').replace(' ', '-')}-{kind}",
            lambda folder: make_family(folder, name, dtype=dtype, fused=fused),
        )

    return make


def _title(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
