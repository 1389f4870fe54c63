"""A directory is there as a whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from predictor.errors import ConfigurationError
from predictor.migration.staging import staged


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder / "model"


@pytest.fixture
def mounted(into: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that is treated as a mount point."""
    into.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == into)
    return into


def write(folder: Path) -> None:
    (folder / "nested").mkdir()
    for name in ("a.txt", "config.json", "z.txt", "nested/b.txt"):
        (folder / name).write_text(name)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


WHOLE = {"a.txt", "config.json", "z.txt", "nested", "nested/b.txt"}


@pytest.mark.parametrize("there", [True, False])
def test_it_is_there_at_the_end_and_nothing_beside_it(into: Path, there: bool) -> None:
    if there:
        into.mkdir()
    with staged(into, last="config.json") as folder:
        write(folder)
        assert not into.exists() or not any(into.iterdir())

    assert names(into.parent) == {"model"} | {f"model/{name}" for name in WHOLE}


def test_an_error_leaves_nothing(into: Path) -> None:
    def fail() -> None:
        with staged(into, last="config.json") as folder:
            write(folder)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not names(into.parent)


def test_a_mount_point_is_filled_from_within(mounted: Path) -> None:
    with staged(mounted, last="config.json") as folder:
        assert folder.is_relative_to(mounted)
        write(folder)

    assert names(mounted) == WHOLE


def test_the_completing_file_is_moved_last(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda path, to: (order.append(path.name), rename(path, to))[1]
    )
    with staged(mounted, last="config.json") as folder:
        write(folder)

    assert set(order) == {"a.txt", "z.txt", "nested", "config.json"}
    assert order[-1] == "config.json"


def test_an_error_on_the_way_out_leaves_nothing(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fails_at_the_last(path: Path, to: Path) -> Path:
        if path.name == "config.json":
            raise OSError(5, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails_at_the_last)
    with (
        pytest.raises(OSError, match="Input/output"),
        staged(mounted, last="config.json") as folder,
    ):
        write(folder)

    assert not names(mounted)


KILLED = """
import os, sys
from pathlib import Path
from predictor.migration.staging import staged

into = Path(sys.argv[1])
rename = Path.rename
Path.is_mount = lambda path: path == into
Path.rename = lambda path, to: os.abort() if path.name == "config.json" else rename(path, to)
with staged(into, last="config.json") as folder:
    for name in ("a.txt", "config.json", "z.txt"):
        (folder / name).touch()
"""


def test_files_that_a_killed_process_moved_are_removed(mounted: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(mounted)], check=False)

    assert done.returncode == -signal.SIGABRT
    assert {"a.txt", "z.txt", ".importing"} < names(mounted)
    assert "config.json" not in names(mounted)

    with staged(mounted, last="config.json") as folder:
        (folder / "config.json").write_text("second")
    assert names(mounted) == {"config.json"}


def test_lost_and_found_is_no_content(mounted: Path) -> None:
    (mounted / "lost+found").mkdir()
    with staged(mounted, last="config.json") as folder:
        write(folder)

    assert names(mounted) == WHOLE | {"lost+found"}


@pytest.mark.parametrize("kind", ["file", "full"])
def test_existing_content_is_left_alone(into: Path, kind: str) -> None:
    if kind == "full":
        into.mkdir()
    (into / "precious" if kind == "full" else into).write_text("precious")
    before = names(into.parent)

    with pytest.raises(ConfigurationError), staged(into, last="config.json"):
        pytest.fail("the block was entered")
    assert names(into.parent) == before


def test_a_missing_parent_is_not_made(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"There is no directory .*/gone to write model in"),
        staged(tmp_path / "gone/model", last="config.json"),
    ):
        pytest.fail("the block was entered")
    assert not names(tmp_path)


def test_one_process_at_a_time_writes_it(into: Path) -> None:
    with staged(into, last="config.json") as folder:
        write(folder)
        with (
            pytest.raises(ConfigurationError, match="Another import is writing"),
            staged(into, last="config.json"),
        ):
            pytest.fail("the block was entered")

    assert names(into) == WHOLE


def test_content_that_appears_meanwhile_is_not_overwritten(into: Path) -> None:
    def interfere() -> None:
        with staged(into, last="config.json") as folder:
            write(folder)
            into.mkdir()
            (into / "precious").touch()

    with pytest.raises(OSError, match="not empty"):
        interfere()
    assert names(into.parent) == {"model", "model/precious"}
