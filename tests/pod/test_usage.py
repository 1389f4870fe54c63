import os

import pytest

from predictor.pod.usage import count_usage
from tests.volumes import tmpfs

MIB = 1 << 20


def test_a_folder_that_does_not_exist_takes_nothing(tmp_path):
    assert count_usage(tmp_path / "none") == count_usage(tmp_path)
    assert count_usage(tmp_path / "none").used == 0


def test_files_at_any_depth_are_counted(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/one").write_bytes(os.urandom(2 * MIB))
    (tmp_path / "two").write_bytes(os.urandom(MIB))
    usage = count_usage(tmp_path)
    assert usage.complete
    assert 3 * MIB <= usage.used < 3.1 * MIB


def test_hard_links_count_once_and_symbolic_links_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(os.urandom(MIB))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one").write_bytes(os.urandom(MIB))
    os.link(folder / "one", folder / "same")
    (folder / "link").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    assert MIB <= count_usage(folder).used < 1.1 * MIB


def test_a_hole_in_a_file_takes_no_bytes(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(100 * MIB)
    assert count_usage(tmp_path).used < MIB


def test_the_count_ends_at_its_bounds_and_says_so(tmp_path):
    for index in range(10):
        (tmp_path / str(index)).write_bytes(os.urandom(MIB // 16))
    assert not count_usage(tmp_path, most_entries=5).complete
    assert count_usage(tmp_path, most_entries=5).used < count_usage(tmp_path).used
    assert not count_usage(tmp_path, most_seconds=-1.0).complete


@pytest.mark.root
def test_other_file_systems_below_are_left_out(tmp_path):
    with tmpfs(tmp_path / "mounted") as mounted:
        (mounted / "file").write_bytes(bytes(MIB))
        assert count_usage(tmp_path).used < MIB
        assert count_usage(mounted).used >= MIB


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is hidden from root")
def test_a_folder_that_may_not_be_read_makes_the_count_incomplete(tmp_path):
    (tmp_path / "hidden").mkdir(mode=0)
    assert not count_usage(tmp_path).complete
