"""The files of one revision: what they take on the volume while they are fetched and released."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from predictor.weights.remote import ranges
from predictor.weights.remote.mirror import Mirror, open_mirror
from predictor.weights.remote.web_source import WebSource
from tests.weights.remote.web import web

NAMES = [f"model-{index}.safetensors" for index in range(4)]
PIECE = 64 * 1024


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """The mirror of four files of 800 KB, each with eight tensors."""
    monkeypatch.setattr(ranges, "PIECE", PIECE)
    (tmp_path / "source").mkdir()
    for name in NAMES:
        tensors = {f"{name}.{index}": np.full((100, 256), index, np.float32) for index in range(8)}
        save_file(tensors, tmp_path / "source" / name)
    index = {"weight_map": {name: name for name in NAMES}}
    (tmp_path / "source/model.safetensors.index.json").write_text(json.dumps(index))
    with web(tmp_path / "source") as (url, _):
        mirror = open_mirror(WebSource(url), tmp_path / "local", ["*.json"])
        yield mirror
        mirror.close()


def test_what_was_released_of_other_files_takes_no_space_while_one_is_fetched(
    mirror: Mirror,
) -> None:
    held: list[int] = []
    mirror.fetched = lambda _: held.append(mirror.held_bytes)
    for name in NAMES:
        tensors = [f"{name}.{index}" for index in range(8)]
        mirror.require(mirror.path / name, tensors)
        mirror.release(mirror.path / name, tensors)

    headers = 4 * PIECE
    assert max(held) <= mirror.largest + headers
    mirror.settle(has_store=True)
    assert mirror.held_bytes <= headers


def test_missing_bytes_are_those_that_were_not_fetched(mirror: Mirror) -> None:
    missing: list[int] = []
    fetched: list[int] = []

    def count(size: int) -> None:
        fetched.append(size)
        missing.append(mirror.missing_bytes)

    mirror.fetched = count
    mirror.complete()

    left = [mirror.total_bytes - sum(fetched[: count + 1]) for count in range(len(fetched))]
    assert missing == left
    assert left[-1] == 0
