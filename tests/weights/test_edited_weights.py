"""Weights that were edited, replaced or downloaded again: a start serves those, and no others.

Each test is of whole starts with one offload folder, and compares greedy tokens with those of a
start that uses no store.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from predictor.checkpoint.safetensors_header import data_start, read_header
from predictor.errors import LoadFailed, WeightsUnreadable
from predictor.weights.load_steps import LoadSteps
from predictor.weights.store import digests, packing
from predictor.weights.store import format as store_format
from predictor.weights.store.digests import KnownDigests, blob_digest, hash_files
from predictor.weights.store.sources import Sources, Stamp
from tests.conftest import Checkpoints
from tests.forked import Forked
from tests.grids import thinned
from tests.serving import Up, blocks_on_disk, bring_up

PROMPT = [5, 6, 7]
EDGE = 4096


def edit_middles(folder: Path, *, name: str = "mlp", shard: str = "*") -> None:
    """Reverse the values of tensors between their first and last pages, in place."""
    for file in folder.glob(f"{shard}.safetensors"):
        content = bytearray(file.read_bytes())
        start = data_start(file)
        for key, entry in read_header(file).items():
            begin, end = (start + offset for offset in entry["data_offsets"])
            if name in key and end - begin > 2 * EDGE:
                middle = slice(begin + EDGE, end - EDGE)
                dtype = torch.bfloat16 if entry["dtype"] == "BF16" else torch.float32
                values = torch.frombuffer(content[middle], dtype=dtype)
                content[middle] = values.flip(0).contiguous().view(torch.uint8).numpy().tobytes()
        with file.open("r+b") as stream:
            stream.write(content)


def edit_quietly(folder: Path) -> None:
    """Edit, and set the times of modification back."""
    before = {file: file.stat() for file in folder.glob("*.safetensors")}
    edit_middles(folder)
    for file, times in before.items():
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def edit_one_shard(folder: Path) -> None:
    edit_middles(folder, shard="model-00003-*")


def replace_by_rename(folder: Path) -> None:
    """Edit copies, and move them over the files."""
    copy = folder.with_name("edited")
    shutil.copytree(folder, copy)
    edit_middles(copy)
    for file in copy.glob("*.safetensors"):
        file.rename(folder / file.name)


def replace_by_link(folder: Path) -> None:
    """The same with hard links, and the old times."""
    before = {file: file.stat() for file in folder.glob("*.safetensors")}
    copy = folder.with_name("edited")
    shutil.copytree(folder, copy)
    edit_middles(copy)
    for file, times in before.items():
        os.utime(copy / file.name, ns=(times.st_atime_ns, times.st_mtime_ns))
        file.unlink()
        file.hardlink_to(copy / file.name)


def download_again(folder: Path) -> None:
    """Replace every file by a copy of it, as a download into a new pod gives."""
    copy = folder.with_name("downloaded")
    shutil.copytree(folder, copy, copy_function=shutil.copy)
    shutil.rmtree(folder)
    copy.rename(folder)


class Model:
    """A copy of a checkpoint, and the offload folder that its starts share."""

    def __init__(self, source: Path, place: Path, **flags: Any) -> None:
        self.folder, self.offload = place / "model", place / "offload"
        shutil.copytree(source, self.folder)
        self._flags = {"device_map": blocks_on_disk(self.folder), **flags}

    @property
    def flags(self) -> dict[str, str]:
        """The settings of a start, as flags."""
        device_map = json.dumps(self._flags["device_map"])
        return {"device_map": device_map, "offload_folder": str(self.offload)}

    def start(self, store: str = "always", *, hashed: bool = True) -> tuple[list[int], set[str]]:
        """Start and stop; return the tokens, and where blocks came from.

        Args:
            store: The setting `offload_store`.
            hashed: Whether to let hashing beside serving come to its end.
        """
        up = self.up(store)
        tokens = up.tokens(PROMPT, max_new_tokens=12)
        if hashed:
            wait_until_hashed(up)
        up.weights.release()
        return tokens, up.sources

    def up(self, store: str = "always") -> Up:
        flags = {"offload_store": store, "offload_folder": str(self.offload), **self._flags}
        return bring_up(self.folder, **flags)

    def right(self) -> list[int]:
        """Return the tokens of the present weights."""
        flags = {key: value for key, value in self._flags.items() if key != "device_map"}
        return bring_up(self.folder, device_map="cpu", **flags).tokens(PROMPT, max_new_tokens=12)


def wait_until_settled(folder: Path) -> None:
    while not all(Stamp.of(file).is_settled(time.time_ns()) for file in folder.iterdir()):
        time.sleep(0.01)


def wait_until_hashed(up: Up) -> None:
    folder: Any = up.weights.resolver._folder
    if folder is not None and folder.weights._thread is not None:
        folder.weights._thread.join(60)
        assert not folder.weights._thread.is_alive()


@pytest.fixture
def model(checkpoints: Checkpoints, tmp_path: Path) -> Model:
    return Model(checkpoints("llama"), tmp_path)


EDITS: list[Callable[[Path], None]] = [
    edit_middles,
    edit_quietly,
    edit_one_shard,
    replace_by_rename,
    replace_by_link,
]


@pytest.mark.parametrize(("edit", "store"), thinned(EDITS, ["always", "auto"]))
def test_edited_weights_are_served_and_no_mixture(
    model: Model, edit: Callable[[Path], None], store: str
) -> None:
    before, sources = model.start()
    assert sources == {"store"}
    edit(model.folder)
    expected = model.right()
    assert expected != before
    for _ in range(2):
        assert model.start(store)[0] == expected


def test_a_start_before_the_hash_is_known_serves_edited_weights_too(model: Model) -> None:
    """Such as one after a kill: the store has stamps, and its files were never hashed."""
    model.start(hashed=False)
    (model.offload / digests.FILE).unlink(missing_ok=True)
    edit_middles(model.folder)
    assert model.start() == (model.right(), {"store"})


@pytest.mark.parametrize("architecture", ["llama-tied", "mixtral", "bloom"])
def test_edited_weights_of_other_architectures(
    checkpoints: Checkpoints, tmp_path: Path, architecture: str
) -> None:
    """With tied weights, and with tensors that transformers converts."""
    model = Model(checkpoints(architecture), tmp_path)
    before, _ = model.start()
    edit_middles(model.folder, name="layers." if architecture == "mixtral" else "mlp")
    expected = model.right()
    assert expected != before
    assert model.start() == (expected, {"store"})


def test_edited_weights_that_are_cast(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = Model(checkpoints("llama"), tmp_path, dtype="bfloat16")
    before, sources = model.start("auto")
    assert sources == {"store"}
    edit_middles(model.folder)
    expected = model.right()
    assert expected != before
    assert model.start("auto") == (expected, {"store"})


def test_an_edited_pickle(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = Model(checkpoints("llama", pickle=True), tmp_path, allow_pickle=True)
    before, _ = model.start()
    file = model.folder / "pytorch_model.bin"
    weights, size = torch.load(file), file.stat().st_size
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name][EDGE:-EDGE] = 0
    weights[name] = weights[name].flip(0)
    torch.save(weights, file)
    assert file.stat().st_size == size
    expected = model.right()
    assert expected != before
    assert model.start() == (expected, {"store"})


def test_the_demo_model_with_edited_middles(tmp_path: Path) -> None:
    """The values of every matrix of an MLP are reversed, but for the first and last 4 KiB."""
    demo = Path(__file__).parents[2] / "examples" / "demo-model"
    model = Model(demo, tmp_path)
    before, _ = model.start()
    edit_middles(model.folder)
    expected = model.right()
    assert expected != before
    assert model.start() == (expected, {"store"})


# Files that are the same


def test_a_download_of_the_same_weights_is_hashed_once(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    before, _ = model.start()
    download_again(model.folder)
    store = next(model.offload.glob("*.store")).stat().st_ino
    with caplog.at_level(logging.INFO):
        assert model.start() == (before, {"store"})
        assert "Hashed 7 files of weights before they are read" in caplog.text
        caplog.clear()
        assert model.start() == (before, {"store"})
        assert "Hashed" not in caplog.text
    assert next(model.offload.glob("*.store")).stat().st_ino == store


def into_cache(folder: Path, blobs: Path) -> None:
    """Make a folder's weights links to blobs, as in the hub's cache."""
    blobs.mkdir()
    for file in folder.glob("*.safetensors"):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        file.symlink_to(blob)


def test_digests_by_the_names_of_blobs_are_kept_for_other_files(
    model: Model, tmp_path: Path
) -> None:
    into_cache(model.folder, tmp_path / "blobs")
    wait_until_settled(model.folder)
    before, _ = model.start()
    store = next(model.offload.glob("*.store")).stat().st_ino
    download_again(model.folder)  # links become files
    assert not any(file.is_symlink() for file in model.folder.iterdir())
    assert model.start() == (before, {"store"})
    assert next(model.offload.glob("*.store")).stat().st_ino == store


def test_where_blocks_can_be_read_in_place_a_download_is_hashed_beside_serving(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    before, _ = model.start()
    download_again(model.folder)
    with caplog.at_level(logging.INFO):
        assert model.start("auto") == (before, {"checkpoint"})
        assert "Hashed 7 files of weights beside serving" in caplog.text
    assert model.start("auto") == (before, {"store"})


def test_files_that_have_not_changed_are_trusted_without_a_hash(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = model.start()

    def fail(*_: Any) -> None:
        raise AssertionError("a file is hashed again")

    monkeypatch.setattr(digests, "_hash", fail)
    assert model.start() == (before, {"store"})
    os.utime(model.offload / digests.FILE)
    assert model.start("auto") == (before, {"store"})


def test_a_store_whose_files_were_never_hashed_is_not_used_for_a_download(model: Model) -> None:
    before, _ = model.start()
    (model.offload / digests.FILE).unlink()
    download_again(model.folder)
    assert model.start("auto") == (before, {"checkpoint"})
    assert model.start("always") == (before, {"store"})


def test_a_store_of_another_format_is_written_again(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("predictor.weights.store.writer.FORMAT", 1)
        patched.setattr(store_format, "FORMAT", 1)
        before, _ = model.start()
    assert model.start() == (before, {"store"})
    assert store_format.read_store(next(model.offload.glob("*.store"))).sources.stamps


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_edit_of_the_config_or_the_code_alone_is_served(model: Model) -> None:
    before, _ = model.start()
    edit_json(model.folder / "config.json", rms_norm_eps=9.0)
    expected = model.right()
    assert expected != before
    assert model.start() == (expected, {"store"})
    (model.folder / "modeling.py").write_text("# of the model")
    assert model.start() == (expected, {"store"})


def test_an_edit_of_the_tokenizer_leaves_the_store(model: Model) -> None:
    model.start()
    edit_json(model.folder / "tokenizer_config.json", model_max_length=77)
    assert model.start()[1] == {"store"}
    assert len(list(model.offload.glob("*.store"))) == 1


# While a start reads, and while it serves


def test_an_edit_while_a_start_reads_is_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.start()
    real = LoadSteps.make_resident

    def edit_and_read(*args: Any, **kwargs: Any) -> Any:
        edit_quietly(model.folder)
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(LoadSteps, "make_resident", edit_and_read)
        with pytest.raises(LoadFailed, match="was changed while it was read"):
            model.start()
    assert model.start() == (model.right(), {"store"})


def test_a_store_of_files_that_were_edited_meanwhile_is_not_kept(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = packing._write

    def write_and_edit(*args: Any) -> None:
        real(*args)
        edit_quietly(model.folder)

    with monkeypatch.context() as patched:
        patched.setattr(packing, "_write", write_and_edit)
        with pytest.raises(LoadFailed, match="was changed while it was read"):
            model.start()
    assert {file.suffix for file in model.offload.glob("*.store*")} == {".lock"}
    assert model.start() == (model.right(), {"store"})


def test_a_process_that_streams_from_the_store_goes_on_with_the_old_weights(model: Model) -> None:
    up = model.up()
    before = up.tokens(PROMPT, max_new_tokens=12)
    edit_middles(model.folder)
    other, sources = model.start()
    assert sources == {"store"}
    assert other == model.right() != before
    assert up.tokens(PROMPT, max_new_tokens=12) == before
    up.weights.release()


def test_a_process_that_streams_in_place_ends_at_an_edit(model: Model) -> None:
    up = model.up("never")
    up.tokens(PROMPT, max_new_tokens=4)
    edit_middles(model.folder)
    with pytest.raises(WeightsUnreadable, match="replaced or changed"):
        up.tokens(PROMPT, max_new_tokens=4)


def test_measurements_of_the_old_weights_are_not_used(model: Model) -> None:
    model.start()
    (cache,) = model.offload.glob("*.known.json")
    before = json.loads(cache.read_bytes())["sources"]
    edit_middles(model.folder)
    model.start()
    assert json.loads(cache.read_bytes())["sources"] != before


# Records, and who may read them


def test_all_files_of_the_offload_folder_are_the_owners_alone(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    model = Model(checkpoints("mixtral"), tmp_path)
    up = model.up()
    wait_until_hashed(up)
    for path in (model.offload, *model.offload.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    up.weights.release()


@pytest.mark.root
def test_a_store_of_another_user_is_left_alone_and_said_so(checkpoints: Checkpoints) -> None:
    """Another user's pod on one volume reads the checkpoint, or refuses if it must not."""
    other = [("os", "setgroups", []), ("os", "setgid", 4242), ("os", "setuid", 4242)]
    # pytest's own folders are closed to other users, and it sees to that time and again.
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as log:
        model = Model(checkpoints("llama"), Path(place))
        model.start()
        model.offload.chmod(0o777)  # as a volume whose group may write has it
        for path in (Path(place), model.folder, *model.folder.iterdir()):
            path.chmod(0o755)
        flags = [f"--{name}={value}" for name, value in model.flags.items()]
        argv = ["serve", f"--model_dir={model.folder}", "--http_port=0", "--enable_grpc=false"]
        process = Forked([*argv, *flags, "--offload_store=always"], stderr=log, before=other)
        assert process.wait(120) == 78
        assert b"holds a store of another user, and this process is user 4242" in read(log)
        process = Forked([*argv, *flags], stderr=log, before=other)
        while b"is ready after" not in read(log):
            assert process.poll() is None, read(log)
            time.sleep(0.05)
        process.kill()
        process.wait()
        text = read(log).decode()
    (warning,) = [line for line in text.splitlines() if "another user" in line and "WARN" in line]
    assert "Blocks are read from the checkpoint instead" in warning
    assert "Traceback" not in text


def read(log: IO[bytes]) -> bytes:
    return os.pread(log.fileno(), 2**20, 0)


def test_digests_are_those_of_sha256sum_and_leave_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_MOST", 3)
    files = {f"{number}": tmp_path / f"{number}" for number in range(5)}
    for number, file in enumerate(files.values()):
        file.write_bytes(bytes([number]) * (2**20 * number + number))
    hashed = hash_files(files, threads=2)
    assert hashed == {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()
    }
    stamps = {name: Stamp.of(file) for name, file in files.items()}
    KnownDigests(tmp_path).keep(stamps, hashed)
    cache = KnownDigests(tmp_path)
    assert [cache.of({name: stamp}) is not None for name, stamp in stamps.items()] == [
        *(False, False, True, True, True)
    ]
    for text in ("", "[]", "{", '{"a": 1}'):
        (tmp_path / digests.FILE).write_text(text)
        assert KnownDigests(tmp_path).of(stamps) is None


def test_a_stamp_within_the_clocks_tick_is_not_trusted(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"w")
    changed = file.stat().st_ctime_ns
    early = Sources(None, {"weights": Stamp.of(file)}, changed)
    late = Sources(None, {"weights": Stamp.of(file)}, changed + 10**9)
    assert not early.are_still(late)
    assert late.are_still(late)
    coarse = Stamp(1, 10**9, 10**9, 7)  # a file system with whole seconds
    assert not coarse.is_settled(2 * 10**9)
    assert coarse.is_settled(3 * 10**9)


def test_a_blob_of_the_hubs_cache_has_its_digest_as_name(tmp_path: Path) -> None:
    name = "0" * 64
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / name).write_bytes(b"w")
    (tmp_path / "model.safetensors").symlink_to(f"blobs/{name}")
    assert blob_digest(tmp_path / "model.safetensors") == name
    assert blob_digest(tmp_path / "blobs") is None


def test_sources_survive_json(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w")
    sources = Sources.of([tmp_path / "weights"], None)
    assert Sources.from_json(json.loads(json.dumps(sources.as_json()))) == sources
    commit = Sources.of([tmp_path / "missing"], "abc")
    assert commit.are_still(Sources("abc", {}, time.time_ns()))
