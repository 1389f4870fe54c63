"""Servers with every border real, and behind them heads over real small models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import serving
from tests.encoding.checkpoints import make_encoder
from tests.protocol.stub import Served, serve

Make = Callable[[str, str], Path]
ServeEncoder = Callable[..., Served]
_LABELS = {"rerank": 1, "question_answering": 2}


@pytest.fixture(scope="package")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Gives the folder of a checkpoint by task and architecture, made at its first use."""
    root = tmp_path_factory.mktemp("encoding")

    def make(task: str, architecture: str) -> Path:
        folder = root / f"{task}-{architecture}"
        if not folder.exists():
            make_encoder(folder, architecture, task, labels=_LABELS.get(task, 3))
        return folder

    return make


@pytest.fixture(scope="package")
def running() -> Iterator[Served]:
    with serve(torchserve=True) as served:
        yield served


@pytest.fixture(scope="package")
def tasks(make: Make) -> Callable[[str], serving.Up]:
    """Gives a BERT that is up for a task."""
    up: dict[str, serving.Up] = {}

    def get(task: str) -> serving.Up:
        if task not in up:
            up[task] = serving.bring_up(make(task, "bert"), task=task)
        return up[task]

    return get


@pytest.fixture
def serve_encoder(running: Served, tasks: Callable[[str], serving.Up]) -> ServeEncoder:
    """Gives a server whose model is for a task."""

    def get(task: str) -> Served:
        running.model.task = tasks(task).task
        return running

    return get
