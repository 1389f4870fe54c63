"""Real folders; the Pod around them and the size of their file system are made up."""

import os
import subprocess
from pathlib import Path

import pytest

from predictor.errors import ConfigurationError
from predictor.pod import volume as volume_module
from predictor.pod.pod_spec import OffloadMount, OwnPod
from predictor.pod.usage import Usage
from predictor.pod.volume import read_volume
from tests.volumes import tmpfs

MIB = 1 << 20
GIB = 1 << 30


def _free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def _pod(offload: OffloadMount | None = None, ephemeral: int | None = None) -> OwnPod:
    return OwnPod("bloom-0", "models", "main", (), False, None, None, ephemeral, offload)


def _mount(path: Path, **changes) -> OffloadMount:
    values = {
        "volume": "scratch",
        "path": path,
        "kind": "persistentVolumeClaim",
        "claim": None,
        "size": None,
        "in_memory": False,
        "partial": False,
        **changes,
    }
    return OffloadMount(**values)


@pytest.fixture
def used(tmp_path):
    """A folder that holds 2 MiB beside the offload folder, both on the same volume."""
    (tmp_path / "beside").write_bytes(os.urandom(2 * MIB))
    (tmp_path / "offload").mkdir()
    return tmp_path


def test_without_a_known_pod_the_file_system_tells(tmp_path):
    volume = read_volume(tmp_path, None)
    assert abs(volume.available - _free(tmp_path)) < GIB
    assert (volume.path, volume.writable, volume.claim) == (tmp_path.resolve(), True, None)


def test_the_file_systems_type_is_the_one_that_stat_names(tmp_path):
    names = {"ext2/ext3": "ext4", "overlayfs": "overlay"}
    command = ["stat", "-f", "-c", "%T", str(tmp_path)]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert read_volume(tmp_path, None).filesystem == names.get(name, name)


def test_a_folder_that_does_not_exist_is_made_and_left_empty(tmp_path):
    folder = tmp_path / "a/b"
    assert read_volume(folder, None).writable
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_not_writable_and_its_closest_parent_tells():
    volume = read_volume(Path("/proc/self/offload"), None)
    assert not volume.writable
    assert volume.filesystem == "proc"
    assert volume.path == Path("/proc").resolve() / str(os.getpid()) / "offload"


@pytest.mark.root
def test_a_read_only_mount_is_not_writable_even_for_root_and_a_full_one_has_nothing(tmp_path):
    with tmpfs(tmp_path, "4m"):
        volume = read_volume(tmp_path, None)
        assert (volume.writable, volume.filesystem) == (True, "tmpfs")
        assert volume.available == 4 * MIB
        (tmp_path / "some").write_bytes(bytes(MIB))
        assert read_volume(tmp_path, None).available == 3 * MIB
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        assert not read_volume(tmp_path, None).writable


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_offload_folder_that_is_a_file_is_a_clear_error(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is or lies below a file; name a folder"):
        read_volume(tmp_path / "file" / below, None)


def test_a_claim_on_a_shared_file_system_has_its_size_less_the_files_on_it(used):
    claim = _mount(used, claim="c", size=10 * MIB)  # this disk is far larger than 10 MiB
    volume = read_volume(used / "offload", _pod(claim, ephemeral=MIB))
    assert 7 * MIB < volume.available <= 8 * MIB
    assert volume.claim == "c"


@pytest.mark.parametrize(
    ("size", "available"),
    [
        (90 * GIB, 20 * GIB),  # used are 100 - 30, by root's reserve too
        (101 * GIB, 25 * GIB),
        (60 * GIB, 25 * GIB),  # the file system is far larger: the few files on it count
    ],
)
def test_a_claim_with_a_file_system_of_its_own_has_what_that_says(
    used, monkeypatch, size, available
):
    disk = os.statvfs_result((GIB, GIB, 100, 30, 25, 0, 0, 0, 0, 255))
    monkeypatch.setattr(volume_module.os, "statvfs", lambda place: disk)
    volume = read_volume(used / "offload", _pod(_mount(used, claim="c", size=size)))
    assert volume.available == available


def test_a_claim_larger_than_what_is_free_leaves_what_is_free(used):
    claim = _mount(used, claim="c", size=2**60)
    assert abs(read_volume(used / "offload", _pod(claim)).available - _free(used)) < GIB


def test_a_claim_that_is_overdrawn_leaves_nothing(used):
    claim = _mount(used, claim="c", size=MIB)
    assert read_volume(used / "offload", _pod(claim)).available == 0


def test_a_claim_of_unknown_size_leaves_what_is_free(used):
    pod = _pod(_mount(used, claim="c"), ephemeral=MIB)  # a claim is no ephemeral storage
    assert abs(read_volume(used / "offload", pod).available - _free(used)) < GIB


@pytest.mark.parametrize(
    ("size", "ephemeral"), [(10 * MIB, None), (None, 10 * MIB), (10 * MIB, GIB), (GIB, 10 * MIB)]
)
def test_an_empty_dir_has_the_tighter_of_its_size_and_the_ephemeral_storage(used, size, ephemeral):
    pod = _pod(_mount(used, kind="emptyDir", size=size), ephemeral)
    assert 7 * MIB < read_volume(used / "offload", pod).available <= 8 * MIB


def test_an_empty_dir_in_memory_is_no_ephemeral_storage(used):
    pod = _pod(_mount(used, kind="emptyDir", size=10 * MIB, in_memory=True), ephemeral=MIB)
    assert read_volume(used / "offload", pod).available > 7 * MIB


def test_the_containers_own_file_system_counts_as_ephemeral_storage(used):
    assert 9 * MIB < read_volume(used / "offload", _pod(None, 10 * MIB)).available <= 10 * MIB


def test_another_kind_of_volume_has_what_is_free(used):
    pod = _pod(_mount(used, kind="hostPath"), ephemeral=MIB)
    assert abs(read_volume(used / "offload", pod).available - _free(used)) < GIB


def test_files_that_could_not_all_be_counted_are_a_warning(used, monkeypatch, caplog):
    monkeypatch.setattr(volume_module, "count_usage", lambda folder: Usage(MIB, complete=False))
    read_volume(used, _pod(_mount(used, claim="c", size=10 * MIB)))
    assert "could be counted" in caplog.text
