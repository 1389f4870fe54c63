"""Checkpoints that several test modules share, made once for a session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

# Two test processes and the servers they start share few cores, and small models gain nothing
# from more threads; set before torch reads it, for this process and those it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.checkpoints import make_checkpoint

Checkpoints = Callable[..., Path]

_STATUS = pytest.StashKey[int]()


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
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Gives the folder of a checkpoint, made at its first use: ``checkpoints("bloom", ...)``."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(
        architecture: str,
        *,
        dtype: torch.dtype = torch.float32,
        shards: bool = True,
        pickle: bool = False,
    ) -> Path:
        kind = f"{str(dtype).removeprefix('torch.')}-{'shards' if shards else 'single'}"
        folder = root / f"{architecture}-{kind}{'-pickle' if pickle else ''}"
        if not folder.exists():
            make_checkpoint(folder, architecture, dtype=dtype, shards=shards, pickle=pickle)
        return folder

    return make
