import os
import random
import tempfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from predictor.errors import ArchiveError
from predictor.migration.archive_formats import open_archive
from tests.migration.archives import (
    files,
    folder,
    named,
    tar_of,
    tarred,
    unpack,
    with_zip64_end,
    zipped,
)
from tests.migration.hostile import DAMAGED, FIRST, HOSTILE, overlapping_bomb, tar_bomb


def refusal_of(path, into):
    """Return the refusal of an archive after checking that it is one sentence."""
    with pytest.raises(ArchiveError) as caught:
        unpack(path, into)
    check_sentence(str(caught.value))
    return str(caught.value)


def check_sentence(text):
    assert text.isprintable()  # so it is one line
    assert text.endswith(".")
    assert not text.endswith("..")
    assert len(text) <= 300


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_written_of(name, tmp_path):
    make, phrase = HOSTILE[name]
    into = tmp_path / "into"
    into.mkdir()

    sentence = refusal_of(make(tmp_path), into)

    assert phrase in sentence
    assert list(into.iterdir()) == []


@pytest.mark.parametrize("name", DAMAGED)
def test_a_member_is_not_kept_that_has(name, tmp_path):
    make, phrase = DAMAGED[name]
    path = make(tmp_path)

    sentence = refusal_of(path, tmp_path)

    assert phrase in sentence
    assert FIRST in sentence
    assert not (tmp_path / FIRST).exists()


@pytest.mark.parametrize("make", [tar_bomb, overlapping_bomb])
def test_a_bomb_takes_little_time_and_memory(make, tmp_path):
    path = tmp_path / "bloom.mar"
    path.write_bytes(make())
    tracemalloc.start()
    began = time.process_time()

    refusal_of(path, tmp_path / "into")

    seconds = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5  # a second where nothing is traced and nobody shares the processor
    assert peak < 32 * 1024**2


SPOILT = {
    "mar": lambda: zipped(files(zipped({"config.json": b"{}"}))),
    "zip-store": lambda: zipped(files(zipped({"config.json": b"{}"})), zipfile.ZIP_STORED),
    "Zip64": lambda: with_zip64_end(zipped({"config.json": b"{}"})),
    "tar": lambda: tarred(files(zipped({"config.json": b"{}"})), "w"),
    "tgz": lambda: tarred(files(zipped({"config.json": b"{}"}))),
    "long names": lambda: tar_of([(named("a/" * 400 + "b"), b"data")], "w"),
}


@pytest.mark.parametrize("layout", SPOILT)
def test_whatever_was_spoilt_an_archive_is_unpacked_or_refused_in_a_sentence(layout, tmp_path):
    whole, chance = SPOILT[layout](), random.Random(1)
    refused = 0

    for number in range(150):
        (tmp_path / "bloom.mar").write_bytes(spoilt(whole, chance))
        try:
            unpack(tmp_path / "bloom.mar", tmp_path / str(number))
        except ArchiveError as error:
            check_sentence(str(error))
            refused += 1

    assert refused > 50


def spoilt(whole, chance):
    """Return an archive with one part changed, left out or repeated."""
    at, length = chance.randrange(len(whole)), chance.randrange(1, 600)
    there = chance.randrange(len(whole))
    put = chance.choice([b"\0", b"\xff" * 4, b"\x80", b"", whole[there : there + length]])
    over = chance.choice([0, len(put), length])
    return whole[:at] + put + whole[at + over :]


def test_a_sentence_shows_as_much_of_a_long_name_as_tells_it(tmp_path):
    names = [f"{'x' * 200}/{'y' * 200}/config.json", f"{'x' * 200}/{'Y' * 200}/config.json"]
    inner = zipped(dict.fromkeys(names, b""))
    archive = tmp_path / ("z" * 250 + ".mar")
    archive.write_bytes(zipped(files(inner)))

    sentence = refusal_of(archive, tmp_path)

    assert "yyy/config.json' in 'model.zip' in 'zzz" in sentence.replace("Y", "y")


@pytest.mark.parametrize("change", ["grown", "a pipe", "a link", "gone"])
def test_a_file_that_changed_since_it_was_listed_is_not_taken_over(change, tmp_path):
    path = folder(tmp_path / "bloom", files())
    file = path / "setup_config.json"
    changes = {
        "grown": lambda: file.write_bytes(b"{}" * 100),
        "a pipe": lambda: os.mkfifo(file),
        "a link": lambda: file.symlink_to("/etc/passwd"),
        "gone": lambda: None,
    }

    with open_archive(path) as archive:
        file.unlink()
        changes[change]()
        with pytest.raises(ArchiveError, match=r"^'setup_config.json' in 'bloom' [^\n]+\.$"):
            archive.read("setup_config.json")
        with pytest.raises(ArchiveError, match=r"^'setup_config.json' in 'bloom' [^\n]+\.$"):
            archive.copy("setup_config.json", tmp_path / "new", lambda done: None)

    assert not os.path.lexists(tmp_path / "new")


@pytest.mark.root
@pytest.mark.parametrize("layout", ["mar", "directory"])
def test_what_may_not_be_read_is_named(layout, readable_by_all, tmp_path):
    path = folder(readable_by_all / "bloom", {"bloom.mar": zipped(files())})
    (path / "bloom.mar").chmod(0o000)
    os.seteuid(65534)
    try:
        sentence = refusal_of(path if layout == "directory" else path / "bloom.mar", tmp_path)
    finally:
        os.seteuid(0)

    assert sentence.startswith("'bloom.mar'")
    assert "may not be read" in sentence or "Permission denied" in sentence


@pytest.fixture
def readable_by_all():
    """Give a folder that users other than root can list."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody who may not read")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


def test_a_long_name_of_a_tar_archive_is_no_bomb(tmp_path):
    (tmp_path / "bloom.tar.gz").write_bytes(tar_of([(named("a/" * 400 + "b"), b"data")]))

    unpack(tmp_path / "bloom.tar.gz", tmp_path / "into")

    assert len(list((tmp_path / "into").rglob("*"))) == 400
