"""Files read through a bounce buffer: every byte in its place, whatever fails."""

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

from predictor.metrics import WeightMetrics
from predictor.placement.buffers import BOUNCE_BUFFER, BOUNCE_BUFFERS
from predictor.weights.direct_io import AlignedBuffer, BlockReader
from predictor.weights.extents import PAGE, BlockExtent, FileSegment, identify_file
from predictor.weights.streaming.bounce_buffer import BounceBuffer, Copy, copy_in_thread
from predictor.weights.streaming.hooks import Streaming, names_in_order
from predictor.weights.streaming.host_loader import HostBlockLoader
from tests.conftest import Checkpoints
from tests.serving import blocks_on_disk, bring_up
from tests.weights.test_hooks import detach_streaming, logits

_SIZE = 11 * PAGE + 123


def short_parts(copy: Copy) -> BounceBuffer:
    """A bounce buffer with parts of two pages, so that a small file takes many."""
    reader = BlockReader(seconds_between_tries=0)
    return BounceBuffer(copy, part_bytes=2 * PAGE, reader=reader)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(random.Random(0).randbytes(_SIZE))
    return path


@pytest.fixture(params=[copy_in_thread, torch.Tensor.copy_], ids=["alone", "torch"])
def files(request: pytest.FixtureRequest) -> Iterator[BounceBuffer]:
    with closing(short_parts(request.param)) as files:
        yield files


def test_bytes_from_anywhere_in_a_file_come_to_lie_anywhere(
    file: Path, files: BounceBuffer
) -> None:
    expected, file_identity = file.read_bytes(), identify_file(file.stat())
    chance = random.Random(1)
    for _ in range(100):
        begin, end = sorted(chance.sample(range(_SIZE + 1), 2))
        into = torch.zeros(_SIZE + 64, dtype=torch.uint8)
        at = chance.randrange(64)
        files.begin(file, begin, file_identity, into[at : at + end - begin])
        files.finish()
        assert into[at : at + end - begin].numpy().tobytes() == expected[begin:end]
        assert into.count_nonzero() == torch.tensor(list(expected[begin:end])).count_nonzero()


def test_segments_of_a_block_are_read_to_the_end_of_the_file(
    file: Path, files: BounceBuffer
) -> None:
    file_identity = identify_file(file.stat())
    segments = (
        FileSegment(file, 5 * PAGE, 7 * PAGE, 0, file_identity),  # reaches beyond the file
        FileSegment(file, 0, 3 * PAGE, 7 * PAGE, file_identity),
    )
    buffer = AlignedBuffer(10 * PAGE)
    files.read(BlockExtent("block", segments, (), "store"), buffer)
    expected = file.read_bytes()
    content = buffer.tensor.numpy().tobytes()
    assert content[: _SIZE - 5 * PAGE] == expected[5 * PAGE :]
    assert content[7 * PAGE :] == expected[: 3 * PAGE]


def test_a_read_that_fails_between_two_parts_is_raised_and_harms_no_later_one(
    file: Path, files: BounceBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_identity, real = identify_file(file.stat()), os.preadv
    is_broken = True

    def preadv(descriptor: int, buffers: Any, offset: int) -> int:
        if is_broken and offset >= 4 * PAGE:
            raise OSError(errno.EIO, "of the test")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    into = torch.zeros(_SIZE, dtype=torch.uint8)
    with pytest.raises(OSError, match="of the test"):
        files.begin(file, 0, file_identity, into)
    is_broken = False
    files.begin(file, PAGE + 5, file_identity, into[: 6 * PAGE])  # other bytes to the same place
    files.finish()
    assert into[: 6 * PAGE].numpy().tobytes() == file.read_bytes()[PAGE + 5 : 7 * PAGE + 5]


def test_the_error_of_a_copy_is_raised(file: Path) -> None:
    def fail(_into: torch.Tensor, _source: torch.Tensor) -> None:
        raise MemoryError("of the test")

    with closing(short_parts(fail)) as files:
        files.begin(file, 0, identify_file(file.stat()), torch.zeros(PAGE, dtype=torch.uint8))
        with pytest.raises(MemoryError, match="of the test"):
            files.finish()


def test_a_file_that_changed_or_is_too_short_is_an_error(file: Path, files: BounceBuffer) -> None:
    file_identity = identify_file(file.stat())
    file.write_bytes(b"short")
    into = torch.zeros(PAGE, dtype=torch.uint8)
    with pytest.raises(OSError, match="replaced or changed"):
        files.begin(file, 0, file_identity, into)
    with pytest.raises(OSError, match="shorter than it was"):
        files.begin(file, 0, identify_file(file.stat()), into)


@pytest.mark.parametrize("store", ["never", "always"])
def test_blocks_that_are_read_through_a_bounce_buffer_compute_what_resident_ones_do(
    checkpoints: Checkpoints, tmp_path: Path, store: str
) -> None:
    folder = checkpoints("llama")
    expected = logits(bring_up(folder, device_map="cpu"))
    flags = {"offload_folder": str(tmp_path), "offload_store": store}
    up = bring_up(folder, device_map=blocks_on_disk(folder), **flags)
    blocks = detach_streaming(up)
    loader = HostBlockLoader(blocks, WeightMetrics("test"), use_bounce_buffer=True)
    in_order = names_in_order(up.model, blocks, {})
    streaming = Streaming(up.model, in_order, loader, WeightMetrics("test"), torch.device("cpu"))
    buffer_bytes = sum(buffer.tensor.nbytes for buffer in loader.buffers)
    assert buffer_bytes == 2 * max(block.size for block in blocks) + BOUNCE_BUFFERS * BOUNCE_BUFFER
    assert torch.equal(logits(up), expected)
    streaming.close()
