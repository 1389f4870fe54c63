"""A file of weights that is fetched by pieces: resumed, checked, released and fetched again."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from predictor.errors import CheckpointError, HubUnreachable
from predictor.weights.remote import ranges
from predictor.weights.remote.shard import Shard
from predictor.weights.remote.source import Listing, RemoteFile

PIECE = 64 * 1024
TENSORS = {f"block.{index}": np.full((100, 256), index, np.float32) for index in range(8)}


@pytest.fixture(autouse=True)
def _pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "PIECE", PIECE)
    monkeypatch.setattr(ranges, "_WAITS", (0.0, 0.0))


@dataclass
class Folder:
    """A source whose files lie in a folder; `cuts` are bytes after which requests break off."""

    path: Path
    cuts: list[int] = field(default_factory=list)
    requests: list[tuple[int, int]] = field(default_factory=list)
    name: str = "a folder"
    ref: str | None = None

    @property
    def file(self) -> RemoteFile:
        content = (self.path / "model.safetensors").read_bytes()
        return RemoteFile("model.safetensors", len(content), None, sha256(content).hexdigest())

    def listing(self) -> Listing:
        return Listing.of([self.file])

    def pin(self, revision: str) -> None:
        pass

    def read(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        self.requests.append((begin, end))
        content = (self.path / file.name).read_bytes()[begin:end]
        if self.cuts:
            yield content[: self.cuts.pop(0)]
            raise HubUnreachable("the connection was cut")
        yield content

    @property
    def fetched(self) -> int:
        """Bytes of pieces, without those that were read for the header."""
        return sum(end - begin for begin, end in self.requests[1:])


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    (tmp_path / "source").mkdir()
    save_file(TENSORS, tmp_path / "source/model.safetensors")
    return Folder(tmp_path / "source")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "local").mkdir()
    return tmp_path / "local"


def open_shard(source: Folder, local: Path) -> Shard:
    return Shard(local, source.file, source)


def is_whole(shard: Shard) -> bool:
    return all(np.array_equal(each, TENSORS[name]) for name, each in load_file(shard.path).items())


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_header_alone_is_fetched_until_a_tensor_is_required(source: Folder, local: Path) -> None:
    shard = open_shard(source, local)

    assert shard.path.stat().st_size == source.file.size
    assert set(shard.names) == set(TENSORS)
    assert source.requests == [(0, 64 * 1024)]
    assert taken(shard.path) <= 64 * 1024


def test_a_tensor_that_is_required_brings_the_whole_file_once(source: Folder, local: Path) -> None:
    shard = open_shard(source, local)

    shard.require(["block.3"])
    shard.require(["block.5"])

    assert is_whole(shard)
    assert source.fetched == source.file.size


def test_a_range_that_breaks_off_is_continued(source: Folder, local: Path) -> None:
    shard = open_shard(source, local)
    source.cuts = [1000, 0, 70]

    shard.require(["block.0"])

    assert is_whole(shard)
    assert len(source.requests) == 1 + -(-source.file.size // PIECE) + 3


def test_a_source_that_stays_away_is_an_outage_and_the_next_start_resumes(
    source: Folder, local: Path
) -> None:
    shard = open_shard(source, local)
    shard.preview("block.0")
    source.cuts = [0] * 100
    with pytest.raises(HubUnreachable, match="a later start goes on where this one stopped"):
        shard.require(["block.7"])
    source.cuts, source.requests = [], [(0, 0)]

    resumed = open_shard(source, local)
    resumed.require(["block.7"])

    assert is_whole(resumed)
    assert source.fetched == source.file.size - 2 * PIECE  # of the preview


def test_a_process_that_was_killed_leaves_what_the_next_one_goes_on_with(
    source: Folder, local: Path
) -> None:
    script = (
        "import os, pathlib, signal, sys\n"
        "from predictor.weights.remote import ranges\n"
        "from tests.weights.remote.test_shard import Folder, open_shard\n"
        f"ranges.PIECE = {PIECE}\n"
        "shard = open_shard(Folder(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))\n"
        "left = [5]\n"
        "def fetched(size):\n"
        "    left[0] -= 1\n"
        "    left[0] or os.kill(os.getpid(), signal.SIGKILL)\n"
        "shard.fetched = fetched\n"
        "shard.require(['block.0'])\n"
    )
    command = [sys.executable, "-c", script, str(source.path), str(local)]
    killed = subprocess.run(command, timeout=120, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    shard = open_shard(source, local)
    shard.require(["block.0"])

    assert is_whole(shard)
    source.requests.insert(0, (0, 0))  # the header was there
    assert source.fetched == source.file.size - 5 * PIECE


def test_a_damaged_file_is_fetched_once_more_and_then_refused(source: Folder, local: Path) -> None:
    shard = open_shard(source, local)
    content = bytearray((source.path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (source.path / "model.safetensors").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"model.safetensors of a folder is damaged"):
        shard.require(["block.0"])

    assert source.fetched == 2 * source.file.size


def test_a_piece_that_was_damaged_on_the_way_is_fetched_again(source: Folder, local: Path) -> None:
    shard = open_shard(source, local)
    shard.preview("block.7")
    with shard.path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")

    shard.require(["block.0"])

    assert is_whole(shard)


def test_released_tensors_take_no_space_and_the_others_stay(source: Folder, local: Path) -> None:
    shard = open_shard(source, local)
    shard.require(["block.0"])
    before = taken(shard.path)

    shard.release([f"block.{index}" for index in range(1, 8)])
    shard.flush()

    assert taken(shard.path) < before / 2
    assert np.array_equal(load_file(shard.path)["block.0"], TENSORS["block.0"])
    shard.require(["block.0"])
    assert source.fetched == source.file.size


def test_a_released_tensor_that_is_required_again_is_fetched_and_checked(
    source: Folder, local: Path
) -> None:
    shard = open_shard(source, local)
    shard.require(["block.0"])
    shard.release(["block.3"])
    shard.flush()
    source.requests = [(0, 0)]

    again = open_shard(source, local)
    again.require(["block.3"])

    assert is_whole(again)
    assert source.fetched == 3 * PIECE  # those with bytes of it


def test_a_released_tensor_of_an_unchecked_file_is_fetched_again(
    source: Folder, local: Path
) -> None:
    shard = open_shard(source, local)
    shard.preview("block.3")
    shard.release(shard.names)
    shard.flush()
    source.requests = [(0, 0)]

    again = open_shard(source, local)
    again.preview("block.3")
    again.preview("block.3")

    assert np.array_equal(load_file(again.path)["block.3"], TENSORS["block.3"])
    assert source.fetched == 3 * PIECE  # those with bytes of it
    again.require(["block.0"])
    assert is_whole(again)
    assert source.fetched == source.file.size


def test_a_file_whose_tensors_are_all_released_is_a_header(source: Folder, local: Path) -> None:
    shard = open_shard(source, local)
    shard.require(["block.0"])

    shard.release(shard.names)
    shard.flush()

    assert taken(shard.path) <= 4096 + 4096
    assert shard.missing_bytes == source.file.size


def test_the_time_of_a_file_never_changes_for_its_readers(source: Folder, local: Path) -> None:
    shard = open_shard(source, local)
    times = {shard.path.stat().st_mtime_ns}
    shard.require(["block.0"])
    times.add(shard.path.stat().st_mtime_ns)
    shard.release(["block.3"])
    shard.flush()
    times.add(shard.path.stat().st_mtime_ns)

    assert len(times) == 1


def test_a_full_volume_is_an_error_of_the_volume(
    source: Folder, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = open_shard(source, local)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        shard.require(["block.0"])


def test_names_within_are_the_tensors_that_have_bytes_there(source: Folder, local: Path) -> None:
    shard = open_shard(source, local)
    begin, end = shard._span("block.3")

    assert shard.names_within(begin, end) == ["block.3"]
    assert shard.names_within(begin - 1, end + 1) == ["block.2", "block.3", "block.4"]
