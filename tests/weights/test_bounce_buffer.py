"""Files read by stages: every byte in its place, whatever lies where and whatever fails."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.weights.extents import PAGE, Block, Segment, stamp_of
from predictor.weights.streaming import bounce_buffer, direct_io, hooks
from predictor.weights.streaming.bounce_buffer import Staged, copy_alone
from predictor.weights.streaming.direct_io import Buffer
from tests.conftest import Checkpoints
from tests.serving import blocks_on_disk, bring_up
from tests.weights.test_hooks import logits

_SIZE = 11 * PAGE + 123


@pytest.fixture(autouse=True)
def short_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of two pages, so that little is much."""
    monkeypatch.setattr(bounce_buffer, "STAGE", 2 * PAGE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(random.Random(0).randbytes(_SIZE))
    return path


@pytest.fixture(params=[copy_alone, torch.Tensor.copy_], ids=["alone", "torch"])
def files(request: pytest.FixtureRequest) -> Iterator[Staged]:
    with closing(Staged(request.param)) as found:
        yield found


def test_bytes_from_anywhere_in_a_file_come_to_lie_anywhere(file: Path, files: Staged) -> None:
    expected, stamp = file.read_bytes(), stamp_of(file.stat())
    chance = random.Random(1)
    for _ in range(100):
        begin, end = sorted(chance.sample(range(_SIZE + 1), 2))
        into = torch.zeros(_SIZE + 64, dtype=torch.uint8)
        at = chance.randrange(64)
        files.begin(file, begin, stamp, into[at : at + end - begin])
        files.finish()
        assert into[at : at + end - begin].numpy().tobytes() == expected[begin:end]
        assert into.count_nonzero() == torch.tensor(list(expected[begin:end])).count_nonzero()


def test_segments_of_a_block_are_read_to_the_end_of_the_file(file: Path, files: Staged) -> None:
    stamp = stamp_of(file.stat())
    segments = (
        Segment(file, 5 * PAGE, 7 * PAGE, 0, stamp),  # reaches beyond the file
        Segment(file, 0, 3 * PAGE, 7 * PAGE, stamp),
    )
    buffer = Buffer(10 * PAGE)
    files.read(Block("block", segments, (), "store"), buffer)
    expected = file.read_bytes()
    found = buffer.tensor.numpy().tobytes()
    assert found[: _SIZE - 5 * PAGE] == expected[5 * PAGE :]
    assert found[7 * PAGE :] == expected[: 3 * PAGE]


def test_a_read_that_fails_between_two_stages_is_told_and_harms_no_later_one(
    file: Path, files: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_io, "_SECONDS_BETWEEN_TRIES", 0.0)
    stamp, real = stamp_of(file.stat()), os.preadv
    is_broken = True

    def preadv(descriptor: int, buffers: Any, offset: int) -> int:
        if is_broken and offset >= 4 * PAGE:
            raise OSError(errno.EIO, "of the test")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    into = torch.zeros(_SIZE, dtype=torch.uint8)
    with pytest.raises(OSError, match="of the test"):
        files.begin(file, 0, stamp, into)
    is_broken = False
    files.begin(file, PAGE + 5, stamp, into[: 6 * PAGE])  # other bytes to the same place
    files.finish()
    assert into[: 6 * PAGE].numpy().tobytes() == file.read_bytes()[PAGE + 5 : 7 * PAGE + 5]


def test_a_copy_that_fails_is_told(file: Path) -> None:
    def fail(_into: torch.Tensor, _found: torch.Tensor) -> None:
        raise MemoryError("of the test")

    with closing(Staged(fail)) as files:
        files.begin(file, 0, stamp_of(file.stat()), torch.zeros(PAGE, dtype=torch.uint8))
        with pytest.raises(MemoryError, match="of the test"):
            files.finish()


def test_a_file_that_changed_or_is_too_short_is_said(file: Path, files: Staged) -> None:
    stamp = stamp_of(file.stat())
    file.write_bytes(b"short")
    into = torch.zeros(PAGE, dtype=torch.uint8)
    with pytest.raises(OSError, match="replaced or changed"):
        files.begin(file, 0, stamp, into)
    with pytest.raises(OSError, match="shorter than it was"):
        files.begin(file, 0, stamp_of(file.stat()), into)


@pytest.mark.parametrize("store", ["never", "always"])
def test_blocks_that_are_read_by_stages_compute_what_resident_ones_do(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setattr(hooks, "is_staged", lambda _: True)
    folder = checkpoints("llama")
    expected = logits(bring_up(folder, device_map="cpu"))
    flags = {"offload_folder": str(tmp_path), "offload_store": store}
    up = bring_up(folder, device_map=blocks_on_disk(folder), **flags)
    stream: Any = up.weights.streaming
    largest = max(block.size for block in stream.lane.blocks)
    assert up.weights.buffer_bytes == 2 * largest + 2 * bounce_buffer.STAGE
    assert torch.equal(logits(up), expected)
    stream.close()
