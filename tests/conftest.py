"""Checkpoints that several test modules share, made once for a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Two test processes and the servers they start share few cores, and small models gain nothing
# from more threads; set before torch reads it, for this process and those it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.checkpoints import make_checkpoint

Checkpoints = Callable[..., Path]


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
