"""The offload store: written once, complete or not at all, and checked before use."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.weights.direct_io import AlignedBuffer, open_block_reader
from predictor.weights.extents import BlockExtent, view_of
from predictor.weights.progress import Progress
from predictor.weights.store import packing
from predictor.weights.store.folder import StoreFolder
from predictor.weights.store.format import Identity, Store, StoreCorrupt, model_of_store, read_store
from predictor.weights.store.packing import VolumeFull, is_faster, write_store
from predictor.weights.store.writer import StoreWriter, partial_file
from tests.conftest import Checkpoints
from tests.volumes import small_volume, tmpfs

ME = Identity("someone/model", "model-bfloat16-0123", "bfloat16")
GIB = 2**30


def tensors(blocks: int = 3, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{index}": {
            f"layers.{index}.weight": torch.randn(37, 50, generator=generator).bfloat16(),
            f"layers.{index}.bias": torch.randn(3, generator=generator),
            f"layers.{index}.scale": torch.randn((), generator=generator),
        }
        for index in range(blocks)
    }


def write(file: Path, held: dict[str, dict[str, torch.Tensor]], who: Identity = ME) -> Store:
    writer = StoreWriter(file, who, held)
    for name, parameters in held.items():
        writer.write(name, parameters)
    writer.finish()
    return read_store(file)


def read(block: BlockExtent) -> dict[str, torch.Tensor]:
    buffer = AlignedBuffer(block.size)
    with open_block_reader(seconds_between_tries=0) as reader:
        reader.read(block, buffer)
    return {tensor.name: view_of(buffer.tensor, tensor).clone() for tensor in block.tensors}


def assert_holds(store: Store, held: dict[str, dict[str, torch.Tensor]]) -> None:
    assert list(store.blocks) == list(held)
    for name, parameters in held.items():
        stored = read(store.blocks[name])
        assert stored.keys() == parameters.keys()
        for key, tensor in parameters.items():
            assert stored[key].dtype == tensor.dtype
            assert torch.equal(stored[key], tensor)


def find(folder: Path, *names: str, verify: bool = False, who: Identity = ME) -> Any:
    """Look for the store as a start does, and stop cleanly."""
    store_folder = StoreFolder(folder, who)
    store = store_folder.find(names, verify=verify, progress=Progress())
    store_folder.release()
    return store


# The file


def test_what_was_written_is_read_and_every_extent_is_aligned(tmp_path: Path) -> None:
    held = tensors()
    store = write(tmp_path / "a.store", held)
    assert store.identity == ME
    assert_holds(store, held)
    for block in store.blocks.values():
        assert block.segments[0].start % 4096 == block.segments[0].length % 4096 == 0
        assert all(tensor.at % 64 == 0 for tensor in block.tensors)
    assert not partial_file(tmp_path / "a.store").exists()


def test_tensors_are_stored_in_the_dtype_they_are_served_in(tmp_path: Path) -> None:
    wanted = {"a": {"a.weight": torch.empty(8, 8, dtype=torch.bfloat16, device="meta")}}
    stored = torch.randn(8, 8)
    writer = StoreWriter(tmp_path / "a.store", ME, wanted)
    writer.write("a", {"a.weight": stored})
    writer.finish()
    read_back = read(read_store(tmp_path / "a.store").blocks["a"])
    assert torch.equal(read_back["a.weight"], stored.bfloat16())


def test_before_it_is_finished_there_is_no_store(tmp_path: Path) -> None:
    held = tensors()
    writer = StoreWriter(tmp_path / "a.store", ME, held)
    writer.write("layers.0", held["layers.0"])
    with pytest.raises(FileNotFoundError):
        read_store(tmp_path / "a.store")
    writer.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (0, "is no offload store"),
        (9, "its header was altered"),
        (17, "its header was altered"),
        (30, "its header was altered"),
    ],
)
def test_an_altered_header_is_always_detected(tmp_path: Path, where: int, sentence: str) -> None:
    file = tmp_path / "a.store"
    write(file, tensors())
    flip(file, where)
    with pytest.raises(StoreCorrupt, match=sentence):
        read_store(file)


@pytest.mark.parametrize("change", [-4096, -1, 1])
def test_a_file_of_another_size_is_always_detected(tmp_path: Path, change: int) -> None:
    file = tmp_path / "a.store"
    write(file, tensors())
    os.truncate(file, file.stat().st_size + change)
    with pytest.raises(StoreCorrupt, match="bytes and not"):
        read_store(file)


def test_a_store_of_another_format_is_not_used_and_known_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.store"
    monkeypatch.setattr("predictor.weights.store.writer.FORMAT", 99)
    with pytest.raises(StoreCorrupt, match="of format 99"):
        write(file, tensors())
    assert model_of_store(file) == ME.model


def flip(file: Path, where: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(where)
        byte = stream.read(1)
        stream.seek(where)
        stream.write(bytes([byte[0] ^ 0x10]))


# Reading


def test_a_read_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = tensors()
    store = write(tmp_path / "a.store", held)
    real, failures = os.preadv, [errno.EIO, errno.EIO]

    def preadv(*args: Any) -> int:
        if failures:
            raise OSError(failures.pop(), "of the test")
        return real(*args)

    monkeypatch.setattr(os, "preadv", preadv)
    assert torch.equal(
        read(store.blocks["layers.1"])["layers.1.bias"], held["layers.1"]["layers.1.bias"]
    )
    failures[:] = [errno.EIO] * 3
    with pytest.raises(OSError, match="of the test"):
        read(store.blocks["layers.1"])


def test_where_direct_reads_are_refused_pages_are_read_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = tensors()
    store = write(tmp_path / "a.store", held)
    dropped: list[int] = []
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct reads")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, *__: dropped.append(start))
    assert_holds(store, held)
    assert dropped == [block.segments[0].start for block in store.blocks.values()]


@pytest.mark.root
def test_a_store_on_a_file_system_in_memory_is_written_and_read(tmp_path: Path) -> None:
    held = tensors()
    with tmpfs(tmp_path / "memory") as folder:
        assert_holds(write(folder / "a.store", held), held)


def test_a_file_that_took_the_stores_name_is_never_read_with_the_old_layout(
    tmp_path: Path,
) -> None:
    held = tensors(4)
    store = write(tmp_path / "a.store", {name: held[name] for name in ("layers.1", "layers.2")})
    write(tmp_path / "a.store", held)  # by another pod, with other offsets
    with pytest.raises(OSError, match="replaced or changed"):
        read(store.blocks["layers.2"])


# Who may use it, and who writes it


def test_a_store_without_all_blocks_is_not_used(tmp_path: Path) -> None:
    write(StoreFolder(tmp_path, ME).file, tensors())
    assert find(tmp_path, "layers.0", "layers.2") is not None
    assert find(tmp_path, "layers.0", "layers.3") is None


def test_a_flipped_byte_is_detected_if_checksums_are_verified(tmp_path: Path) -> None:
    file = StoreFolder(tmp_path, ME).file
    store = write(file, tensors())
    flip(file, store.blocks["layers.1"].segments[0].start + 100)
    assert find(tmp_path, "layers.0") is not None
    assert find(tmp_path, "layers.0", verify=True) is None
    assert file.exists()  # others may be reading what is right of it


def test_after_an_unclean_stop_every_block_is_checked(tmp_path: Path) -> None:
    file = StoreFolder(tmp_path, ME).file
    store = write(file, tensors())
    kill_while_used(tmp_path)
    assert find(tmp_path, "layers.0") is not None  # it was whole
    flip(file, store.blocks["layers.1"].segments[0].start + 100)
    assert find(tmp_path, "layers.0") is not None  # the start before ended as it should
    kill_while_used(tmp_path)
    assert find(tmp_path, "layers.0") is None


_USE = """
import os, signal, sys
from pathlib import Path
from predictor.weights.progress import Progress
from predictor.weights.store.format import Identity
from predictor.weights.store import packing
from predictor.weights.store.folder import StoreFolder
place = StoreFolder(Path(sys.argv[1]), Identity("someone/model", "model-bfloat16-0123", "bfloat16"))
assert place.find(["layers.0"], verify=False, progress=Progress()) is not None
place.serve()
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_while_used(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _USE, str(folder)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_while_another_uses_the_store_its_mark_tells_of_no_unclean_stop(tmp_path: Path) -> None:
    file = StoreFolder(tmp_path, ME).file
    store = write(file, tensors())
    first = StoreFolder(tmp_path, ME)
    assert first.find(["layers.0"], verify=False, progress=Progress()) is not None
    first.serve()
    flip(file, store.blocks["layers.1"].segments[0].start + 100)
    assert find(tmp_path, "layers.0") is not None
    first.release()
    assert find(tmp_path, "layers.0") is not None


def test_one_writes_and_who_will_not_wait_goes_on(tmp_path: Path) -> None:
    first, second = StoreFolder(tmp_path, ME), StoreFolder(tmp_path, ME)
    with first.writing(wait=False, progress=Progress()) as is_first:
        assert is_first
        with second.writing(wait=False, progress=Progress()) as is_second:
            assert not is_second
    with second.writing(wait=True, progress=Progress()) as is_second:
        assert is_second


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(
    tmp_path: Path,
) -> None:
    other = StoreFolder(tmp_path, Identity("someone/other", "other", "bfloat16"))
    abandoned = [
        *(tmp_path / "gone.store.partial", partial_file(StoreFolder(tmp_path, ME).file)),
        *(tmp_path / ".sample-x1", tmp_path / ".digests.json-x1.partial"),
    ]
    young = tmp_path / ".digests.json-x2.partial"
    for file in (*abandoned, partial_file(other.file), young):
        file.write_bytes(b"half")
    for file in abandoned[2:]:
        os.utime(file, (1, 1))
    with (
        other.writing(wait=False, progress=Progress()),
        StoreFolder(tmp_path, ME).writing(wait=False, progress=Progress()),
    ):
        pass
    assert not [file for file in abandoned if file.exists()]
    assert young.exists()


def test_a_sample_of_a_volume_is_the_owners_alone_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def measure(blocks: Any) -> float:
        seen.append(blocks[0].segments[0].file.stat().st_mode & 0o777)
        return 1.0

    monkeypatch.setattr(packing, "measure_blocks", measure)
    assert packing.measure_folder(tmp_path / "a.store") == 1.0
    assert seen == [0o600]
    assert list(tmp_path.iterdir()) == []


# Packing


def packed(
    folder: Path,
    source: dict[str, dict[str, torch.Tensor]],
    free: int = GIB,
    beside: Path | None = None,
) -> Store:
    """Packs blocks that lie in a safetensors file."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    file = (beside or folder.parent) / "source.safetensors"
    save_file({key: t for block in source.values() for key, t in block.items()}, file)
    index = {
        key: {"safetensors_file": str(file), "weight_name": key}
        for block in source.values()
        for key in block
    }
    place = StoreFolder(folder, ME)
    write_store(place, source, index, free=free, progress=Progress())
    return read_store(place.file)


def test_packing_keeps_what_other_pods_need(tmp_path: Path) -> None:
    held = tensors(4)
    first = {name: held[name] for name in ("layers.0", "layers.2")}
    second = {name: held[name] for name in ("layers.1", "layers.2")}
    packed(tmp_path / "volume", first)
    store = packed(tmp_path / "volume", second)
    assert_holds(store, {name: held[name] for name in ("layers.1", "layers.2", "layers.0")})


def test_what_other_pods_need_is_left_out_where_there_is_no_room(tmp_path: Path) -> None:
    held = tensors(4)
    packed(tmp_path / "volume", {"layers.0": held["layers.0"]})
    second = {name: held[name] for name in ("layers.1", "layers.2")}
    store = packed(tmp_path / "volume", second, free=3 * 4096)
    assert_holds(store, second)


def test_a_full_volume_is_an_error_with_both_numbers_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(VolumeFull, match=r"takes 16.00 KiB and 4.00 KiB are free"):
        packed(tmp_path / "volume", tensors(3), free=4096)
    assert not [file for file in (tmp_path / "volume").iterdir() if ".store" in file.name]


def test_stores_of_the_same_model_that_nobody_uses_make_room(tmp_path: Path) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    others = {
        "old": Identity(ME.model, "old", "bfloat16"),
        "used": Identity(ME.model, "used", "bfloat16"),
        "foreign": Identity("someone/other", "foreign", "bfloat16"),
    }
    for name, who in others.items():
        write(folder / f"{name}.store", tensors(3, seed=1), who)
    (folder / "notes.store").write_text("not ours at all")
    used = StoreFolder(folder, others["used"])
    assert used.find(["layers.0"], verify=False, progress=Progress()) is not None
    packed(folder, tensors(3), free=4096)
    left = {file.name for file in folder.glob("*.store")}
    assert left == {"used.store", "foreign.store", "notes.store", f"{ME.name}.store"}
    used.release()


@pytest.mark.root
def test_a_volume_that_is_full_leaves_no_store_and_no_part_of_one(tmp_path: Path) -> None:
    held = {
        f"layers.{i}": {f"layers.{i}.weight": torch.ones(2**20)} for i in range(4)
    }  # 4 MiB each
    with small_volume(tmp_path, 8 * 2**20) as folder:
        with pytest.raises(OSError, match="No space left"):
            packed(folder / "offload", held, beside=tmp_path)  # it believes in more
        assert not [file for file in (folder / "offload").iterdir() if ".store" in file.name]


def test_packing_pays_where_the_offload_volume_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = write(tmp_path / "a.store", tensors(1)).blocks.values()
    assert not is_faster(tmp_path / "b.store", [block])  # it is the same one
    stat, device = os.stat, tmp_path.stat().st_dev

    class Elsewhere:
        st_dev = device + 1

    monkeypatch.setattr(
        os, "stat", lambda path, **o: Elsewhere if path == tmp_path else stat(path, **o)
    )
    for ratio, expected in ((2.0, True), (1.1, False), (0.5, False)):
        measured = is_faster(
            tmp_path / "b.store",
            [block],
            block_bandwidth=lambda _: 1e9,
            folder_bandwidth=lambda _, ratio=ratio: ratio * 1e9,  # type: ignore[misc]
        )
        assert measured is expected


# Whole starts

_START = """
import sys
from pathlib import Path
from tests.serving import blocks_on_disk, bring_up
folder, offload = map(Path, sys.argv[1:])
print("begun", flush=True)
up = bring_up(folder, device_map=blocks_on_disk(folder), offload_folder=str(offload),
              offload_store="always")
print(up.tokens([5, 6, 7], max_new_tokens=6), flush=True)
print({block.source for block in up.weights.streaming.loader.blocks}, flush=True)
up.weights.release()
"""


@contextmanager
def started(folder: Path, offload: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", _START, str(folder), str(offload)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_two_processes_share_a_volume(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = checkpoints("llama")
    with started(folder, tmp_path) as one, started(folder, tmp_path) as other:
        outputs = [process.communicate(timeout=120)[0].splitlines() for process in (one, other)]
    assert outputs[0][1] == outputs[1][1]
    assert "{'store'}" in {lines[2] for lines in outputs}  # the other may have read the checkpoint
    assert [file.name for file in tmp_path.glob("*.partial")] == []
    assert len(list(tmp_path.glob("*.store"))) == 1


def test_a_packing_that_is_killed_at_any_moment_is_done_again(tmp_path: Path) -> None:
    """After each of 50 kills at random moments there is no store, or one with the right blocks."""
    held = tensors(40, seed=3)
    folder = tmp_path / "volume"
    packed(folder, held)  # makes the source
    chance = random.Random(5)
    killed = 0
    argv = [sys.executable, "-c", _PACK, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as packer:
        assert packer.stdin is not None
        assert packer.stdout is not None
        for _ in range(50):
            StoreFolder(folder, ME).file.unlink(missing_ok=True)
            packer.stdin.write(f"{chance.random() * 0.03}\n")
            packer.stdin.flush()
            killed += packer.stdout.readline() == "1\n"
            store = find(folder, *held)
            if store is not None:
                assert_holds(store, held)
    assert killed > 20
    assert_holds(packed(folder, held), held)
    assert not partial_file(StoreFolder(folder, ME).file).exists()


_PACK = """
import os, sys, threading, signal
from pathlib import Path
from tests.weights import test_store as t
folder = Path(sys.argv[1])
held = t.tensors(40, seed=3)
index = {key: {"safetensors_file": str(folder.parent / "source.safetensors"), "weight_name": key}
         for block in held.values() for key in block}
read, write = os.pipe()
while True:
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    child = os.fork()
    if child == 0:
        place = t.StoreFolder(folder, t.ME)
        t.write_store(place, held, index, free=t.GIB, progress=t.Progress())
        os._exit(0)
    import time
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print(int(os.WIFSIGNALED(status)), flush=True)
"""


_STARTS = """
import os, random, signal, sys, time
from pathlib import Path
from tests.serving import blocks_on_disk, bring_up
folder, offload = map(Path, sys.argv[1:3])
flags = {"device_map": blocks_on_disk(folder), "offload_folder": str(offload)}

def start():
    child = os.fork()
    if child == 0:
        up = bring_up(folder, offload_store="always", **flags)
        print(up.tokens([5, 6, 7], max_new_tokens=6), up.sources, flush=True)
        os._exit(0)
    return child

began = time.monotonic()
os.waitpid(start(), 0)
whole, chance = time.monotonic() - began, random.Random(7)
kills = int(sys.argv[3])
for number in range(kills):
    for store in offload.glob("*.store"):
        store.unlink()
    child = start()
    # one in each part of a start and of the time after it
    time.sleep((number + chance.random()) / kills * 1.5 * whole)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(*sorted(file.suffix for file in offload.iterdir()), flush=True)
    os.waitpid(start(), 0)
"""


def test_a_start_that_is_killed_at_any_moment_is_followed_by_one_with_the_right_tokens(
    checkpoints: Checkpoints, tmp_path: Path, full_grid: bool
) -> None:
    """Whole starts killed at random moments, each followed by a start that answers."""
    folder = checkpoints("llama")
    kills = 50 if full_grid else 16
    argv = [sys.executable, "-c", _STARTS, str(folder), str(tmp_path), str(kills)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    answers = [line for line in lines if line.startswith("[")]
    states = {line for line in lines if line.startswith(".")}
    assert len(answers) >= 1 + kills  # and of starts that were done before they were killed
    assert answers == [answers[0]] * len(answers)
    assert answers[0].endswith("{'store'}")
    assert {".store" in state.split() for state in states} == {False, True}  # before and after
