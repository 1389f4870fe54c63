from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.pod.mounts import Mount, mount_of, read_mounts

LINE = (
    "36 35 98:0 /sub /mnt/offload rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue"
)


def _proc(folder: Path, *lines: str) -> Path:
    (folder / "self").mkdir(exist_ok=True)
    (folder / "self/mountinfo").write_text("".join(f"{line}\n" for line in lines))
    return folder


def _mount(point: str, filesystem: str) -> Mount:
    return Mount("/", Path(point), filesystem, frozenset())


def test_a_line_of_mountinfo_gives_root_point_type_and_the_file_systems_options(tmp_path):
    assert read_mounts(_proc(tmp_path, LINE)) == (
        Mount("/sub", Path("/mnt/offload"), "ext3", frozenset({"rw", "errors=continue"})),
    )


def test_a_host_without_mountinfo_has_no_known_mounts(tmp_path):
    assert read_mounts(tmp_path) == ()


def test_this_machines_own_mounts_are_read():
    assert mount_of(Path("/proc/self"), read_mounts(Path("/proc"))).filesystem == "proc"


@given(name=st.text(st.sampled_from(" \t\n\\#ab0é"), min_size=1))
def test_octal_escapes_in_a_mount_point_are_undone(tmp_path_factory, name):
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in name)
    proc = _proc(tmp_path_factory.mktemp("proc"), LINE.replace("offload", escaped))
    assert read_mounts(proc)[0].point == Path(f"/mnt/{name}")


@pytest.mark.parametrize(
    ("folder", "filesystem"),
    [
        ("/mnt/offload", "nfs4"),
        ("/mnt/offload/blocks", "nfs4"),
        ("/mnt/offload2", "overlay"),  # a longer name is not a folder below
        ("/mnt", "overlay"),
    ],
)
def test_a_folder_is_on_the_longest_mount_above_it(folder, filesystem):
    mounts = [_mount("/mnt/offload", "nfs4"), _mount("/", "overlay")]
    assert mount_of(Path(folder), mounts).filesystem == filesystem


def test_a_later_mount_on_the_same_point_hides_the_earlier():
    mounts = [_mount("/", "overlay"), _mount("/mnt", "ext4"), _mount("/mnt", "tmpfs")]
    assert mount_of(Path("/mnt/x"), mounts).filesystem == "tmpfs"


def test_a_folder_on_no_known_mount_has_none():
    assert mount_of(Path("/x"), []) is None
