import os
import shutil
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from predictor.errors import ArchiveError
from predictor.migration.archive_formats import open_archive
from predictor.migration.listing import Member
from tests.migration.archives import (
    MANIFEST,
    MODEL,
    Entry,
    files,
    folder,
    named,
    raw_zip,
    tar_of,
    tarred,
    unpack,
    with_zip64_end,
    zipped,
)
from tests.volumes import read_only

LAYOUTS = ["mar", "zip-store", "tgz", "tar", "directory", "directory in a directory"]


def make(layout: str, tmp_path: Path, contents: dict[str, bytes]) -> Path:
    """Pack files as TorchServe's archiver does in one of its formats."""
    path = tmp_path / "bloom"
    if layout == "directory":
        return folder(path, contents)
    if layout == "directory in a directory":
        return folder(path, {f"inside/{name}": data for name, data in contents.items()})
    packed = {
        "mar": lambda: zipped(contents),
        "zip-store": lambda: zipped(contents, zipfile.ZIP_STORED),
        "tgz": lambda: tarred(contents),
        "tar": lambda: tarred(contents, "w"),
    }
    path.write_bytes(packed[layout]())
    return path


def copied(archive, path, into):
    """Copy a member; return its bytes and the reported progress."""
    progress = []
    archive.copy(path, into, progress.append)
    return into.read_bytes(), progress


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_members(layout, tmp_path):
    contents = files()

    with open_archive(make(layout, tmp_path, contents)) as archive:
        read = {name: archive.read(name) for name in archive.members}

        assert read == contents
        assert archive.members[MANIFEST] == Member(MANIFEST, len(contents[MANIFEST]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("root", ["", "snapshot/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_model_zip_is_read_in_its_archive_with_or_without_a_root(layout, root, method, tmp_path):
    model = zipped({f"{root}{name}": data for name, data in MODEL.items()}, method)
    path = make(layout, tmp_path, files(model))
    before = sorted(tmp_path.rglob("*"))

    with open_archive(path) as archive, archive.inner("model.zip") as inner:
        assert sorted(tmp_path.rglob("*")) == before
        assert inner.read("config.json") == MODEL["config.json"]
        weights, progress = copied(inner, "model.safetensors", tmp_path / "weights")

    assert weights == MODEL["model.safetensors"]
    assert sum(progress) == len(weights)
    assert max(progress) <= 1024**2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_members_may_be_read_in_any_order_while_an_inner_archive_is_open(layout, tmp_path):
    contents = files()

    with (
        open_archive(make(layout, tmp_path, contents)) as archive,
        archive.inner("model.zip") as inner,
    ):
        for name in reversed(list(archive.members)):
            assert copied(archive, name, tmp_path / name.replace("/", "-"))[0] == contents[name]
            assert inner.read("config.json") == MODEL["config.json"]


@pytest.mark.parametrize("layout", ["mar", "tgz"])
def test_members_come_in_the_order_in_which_they_lie(layout, tmp_path):
    contents = dict.fromkeys(["c/1", "a", "c/0", "b"], b"")

    with open_archive(make(layout, tmp_path, contents)) as archive:
        assert list(archive.members) == list(contents)


def test_a_directory_lists_its_files_by_name(tmp_path):
    path = folder(tmp_path / "bloom", {"b/2": b"", "b/1": b"", "a": b"", "c": b""})

    with open_archive(path) as archive:
        assert sorted(archive.members) == ["a", "b/1", "b/2", "c"]


def test_a_manifest_alone_keeps_its_folder(tmp_path):
    (tmp_path / "bloom.mar").write_bytes(zipped({MANIFEST: b"{}"}))

    with open_archive(tmp_path / "bloom.mar") as archive:
        assert list(archive.members) == [MANIFEST]


def test_folder_entries_are_no_members(tmp_path):
    entries = [Entry(b"snapshot/", b""), Entry(b"snapshot/a/", b"", kind=0o40755)]
    (tmp_path / "zip").write_bytes(raw_zip(*entries, Entry(b"snapshot/a/b", kind=0o100644)))
    infos = [named(".", b"5"), named("./bloom", b"5"), named("./bloom/a", b"5")]
    members = [*((info, b"") for info in infos), (named("./bloom/a/b"), b"data")]
    (tmp_path / "tgz").write_bytes(tar_of(members))

    for layout in ("zip", "tgz"):
        with open_archive(tmp_path / layout) as archive:
            assert list(archive.members) == ["a/b"]


def test_long_and_non_ascii_names_are_accepted(tmp_path):
    contents = {f"{'ordner/' * 20}größe-{'x' * 150}.json": b"{}", "模型": b"weights"}
    (tmp_path / "zip").write_bytes(zipped(contents))
    (tmp_path / "tgz").write_bytes(tarred(contents))

    for layout in ("zip", "tgz"):
        with open_archive(tmp_path / layout) as archive:
            assert {name: archive.read(name) for name in archive.members} == contents


def test_a_zip64_archive_is_read(tmp_path):
    (tmp_path / "bloom.mar").write_bytes(with_zip64_end(zipped(files())))

    with open_archive(tmp_path / "bloom.mar") as archive:
        assert archive.read("setup_config.json") == files()["setup_config.json"]


def test_a_zip_archive_with_a_comment_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "bloom.mar", "w") as archive:
        archive.writestr("a", b"1")
        archive.comment = b"packed by hand"

    with open_archive(tmp_path / "bloom.mar") as archive:
        assert archive.read("a") == b"1"


def test_a_directory_of_many_members_is_read_though_it_exceeds_the_tail_in_memory(tmp_path):
    inner = zipped({f"{number:05}-{'x' * 200}": b"" for number in range(8000)})
    (tmp_path / "bloom.mar").write_bytes(zipped({"model.zip": inner}))

    with open_archive(tmp_path / "bloom.mar") as archive, archive.inner("model.zip") as model:
        assert len(model.members) == 8000


def test_small_files_of_zeros_are_no_bomb(tmp_path):
    contents = {"zeros": bytes(8 * 1024**2)}
    (tmp_path / "zip").write_bytes(zipped(contents))
    (tmp_path / "tgz").write_bytes(tarred(contents | {"a": b""}, root=""))

    for layout in ("zip", "tgz"):
        unpack(tmp_path / layout, tmp_path / f"of-{layout}")
        assert (tmp_path / f"of-{layout}" / "zeros").read_bytes() == contents["zeros"]


def test_a_file_of_a_directory_is_linked(tmp_path):
    path = folder(tmp_path / "bloom", MODEL)

    with open_archive(path) as archive:
        space = archive.space_for("model.safetensors", tmp_path)
        data, progress = copied(archive, "model.safetensors", tmp_path / "weights")

    assert space == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bloom", "weights"]
    assert (tmp_path / "weights").stat().st_ino == (path / "model.safetensors").stat().st_ino
    assert progress == [len(data)]


def test_a_file_of_a_directory_on_another_file_system_is_copied(tmp_path, elsewhere):
    path = folder(tmp_path / "bloom", MODEL)

    with open_archive(path) as archive:
        space = archive.space_for("model.safetensors", elsewhere)
        data, progress = copied(archive, "model.safetensors", elsewhere / "weights")

    assert data == MODEL["model.safetensors"]
    assert space == len(data) == sum(progress)
    assert (elsewhere / "weights").stat().st_nlink == 1


def test_a_file_of_a_directory_that_cannot_be_linked_is_copied(tmp_path):
    path = folder(tmp_path / "bloom", MODEL)

    with read_only(path), open_archive(path) as archive:  # a mount of its own, on one device
        space = archive.space_for("config.json", tmp_path)
        data, progress = copied(archive, "config.json", tmp_path / "copy")

    assert (tmp_path / "copy").stat().st_dev == path.stat().st_dev
    assert space == sum(progress) == len(data) == len(MODEL["config.json"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bloom", "copy"]


def test_an_unpacked_member_takes_its_size(tmp_path):
    (tmp_path / "bloom.mar").write_bytes(zipped(MODEL))

    with open_archive(tmp_path / "bloom.mar") as archive:
        assert archive.space_for("config.json", tmp_path) == len(MODEL["config.json"])


def test_links_in_a_hub_cache_are_followed(tmp_path):
    cache = folder(tmp_path / "models--bigscience--bloom", {"blobs/1a2b": b"weights"})
    snapshot = cache / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/1a2b")
    (tmp_path / "link").symlink_to(cache)

    with open_archive(tmp_path / "link") as archive:
        data, _ = copied(archive, "snapshots/main/model.safetensors", tmp_path / "weights")

    assert data == b"weights"
    assert not (tmp_path / "weights").is_symlink()
    assert (tmp_path / "weights").stat().st_ino == (cache / "blobs" / "1a2b").stat().st_ino


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_is_there_is_never_written_over(layout, tmp_path):
    (tmp_path / "there").write_bytes(b"mine")

    with (
        open_archive(make(layout, tmp_path, files())) as archive,
        pytest.raises(FileExistsError),
    ):
        archive.copy("setup_config.json", tmp_path / "there", lambda done: None)

    assert (tmp_path / "there").read_bytes() == b"mine"


def test_a_copy_that_is_interrupted_leaves_no_file(tmp_path):
    (tmp_path / "bloom.mar").write_bytes(zipped(MODEL))

    def interrupt(done):
        raise KeyboardInterrupt

    with open_archive(tmp_path / "bloom.mar") as archive, pytest.raises(KeyboardInterrupt):
        archive.copy("model.safetensors", tmp_path / "weights", interrupt)

    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_small_members_are_read_whole(layout, tmp_path):
    contents = {"a": b"", "large": bytes(1024**2 + 1)}

    with (
        open_archive(make(layout, tmp_path, contents)) as archive,
        pytest.raises(ArchiveError, match=r"'large' in 'bloom' has 1.00 MiB, which is over"),
    ):
        archive.read("large")


@pytest.mark.parametrize("act", ["read", "copy", "inner", "space_for"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_member_that_is_not_there_is_named(layout, act, tmp_path):
    acts = {
        "read": lambda archive: archive.read("no.json"),
        "copy": lambda archive: archive.copy("no.json", tmp_path / "new", print),
        "inner": lambda archive: archive.inner("no.json").__enter__(),
        "space_for": lambda archive: archive.space_for("no.json", tmp_path),
    }

    with (
        open_archive(make(layout, tmp_path, files())) as archive,
        pytest.raises(ArchiveError, match=r"^'bloom' holds no 'no.json'\.$"),
    ):
        acts[act](archive)

    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_archive_in_an_inner_archive_is_not_read(layout, tmp_path):
    path = make(layout, tmp_path, files(zipped({"model.zip": zipped(MODEL)})))

    with (
        open_archive(path) as archive,
        archive.inner("model.zip") as inner,
        pytest.raises(ArchiveError, match=r"is an archive in an inner archive"),
        inner.inner("model.zip"),
    ):
        pass


@pytest.mark.parametrize("layout", ["mar", "tgz"])
def test_weights_are_never_held_in_memory(layout, tmp_path):
    size = 64 * 1024**2
    inner = zipped({"config.json": b"{}", "weights": os.urandom(1024**2) * 64})
    path = make(layout, tmp_path, files(inner))
    del inner
    tracemalloc.start()

    with open_archive(path) as archive, archive.inner("model.zip") as model:
        model.copy("weights", tmp_path / "weights", lambda done: None)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "weights").stat().st_size == size
    assert peak < 16 * 1024**2


def test_all_of_an_inner_archive_takes_two_decompressions(tmp_path, monkeypatch):
    inner = zipped({f"shard-{number}": os.urandom(1024**2) for number in range(8)})
    (tmp_path / "bloom.mar").write_bytes(zipped({"model.zip": inner}))
    read = 0
    original = zipfile.ZipExtFile.read

    def counting(self, *arguments):
        nonlocal read
        data = original(self, *arguments)
        read += len(data) if self.name == "model.zip" else 0
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
    with open_archive(tmp_path / "bloom.mar") as archive, archive.inner("model.zip") as model:
        for name in model.members:
            model.copy(name, tmp_path / name, lambda done: None)

    assert len(inner) < read <= 2 * len(inner)


@pytest.fixture
def elsewhere(tmp_path):
    """Give a folder on another file system than the test's other files."""
    place = Path("/dev/shm")
    if not place.is_dir() or place.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    made = Path(tempfile.mkdtemp(dir=place))
    yield made
    shutil.rmtree(made)
