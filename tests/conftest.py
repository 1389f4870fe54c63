"""Checkpoints that several test modules share, made once for a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
