"""The folder of converted weights: one for each model, locked, complete or removed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from predictor.checkpoint.checkpoint import Checkpoint, open_directory
from predictor.errors import ConfigurationError
from predictor.weights.converted import conversion_name, folder_name, open_conversion_folder
from tests.conftest import Checkpoints
from tests.serving import blocks_on_disk, bring_up


@pytest.fixture
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    return open_directory(checkpoints("mixtral"))


def test_a_finished_write_is_marked_complete(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with open_conversion_folder(tmp_path, checkpoint, "float32") as written:
        folder = written.path
        (folder / "weight.safetensors").write_bytes(b"whole")
        assert not (folder / "complete.json").exists()
    assert (folder / "complete.json").exists()


def test_an_interrupted_write_leaves_no_marker_and_no_part_of_a_file(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = tmp_path / conversion_name(checkpoint, "float32")

    def interrupted() -> None:
        with open_conversion_folder(tmp_path, checkpoint, "float32"):
            (folder / ".tmpAb3xYz").write_bytes(b"ha")  # as safetensors names what it will rename
            (folder / "done.safetensors").write_bytes(b"whole")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (folder / "complete.json").exists()
    with open_conversion_folder(tmp_path, checkpoint, "float32"):
        assert [file.name for file in folder.iterdir()] == ["done.safetensors"]


def test_a_start_beside_a_running_process_takes_no_file_from_it(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with open_conversion_folder(tmp_path, checkpoint, "float32") as written:
        folder = written.path
        (folder / "weight.safetensors").write_bytes(b"in use")
    with open_conversion_folder(tmp_path, checkpoint, "float32"):
        assert (folder / "weight.safetensors").read_bytes() == b"in use"
        assert (folder / "complete.json").exists()


def test_a_restart_on_a_volume_that_just_holds_the_model_fits(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    from predictor import startup
    from predictor.pod.resources import Memory, PodResources, Volume
    from predictor.settings import read_settings

    flags = {
        "model_dir": str(checkpoints("mixtral")),
        "device_map": "disk",
        "max_model_len": 128,
        "offload_folder": str(tmp_path),
        "memory_headroom": 0,
    }
    settings = read_settings(flags, environ={})
    first = bring_up(checkpoints("mixtral"), **flags).prepared
    needed = first.placement.tier("disk").planned
    written = sum(f.stat().st_blocks * 512 for f in tmp_path.rglob("*") if f.is_file())
    left = needed - written + 64 * 1024
    volume = Volume(tmp_path, max(left, 128 * 1024), True, "ext4", None)
    pod = PodResources((), Memory(2**30, 2**30, "stated by a test"), volume)
    again = startup.prepare(settings, startup.open_checkpoint(settings), pod)
    assert again.placement.device_map == first.placement.device_map


def test_weights_that_were_trained_further_in_any_layer_are_another_models(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoints("llama", shards=False), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    names = {folder_name(open_directory(tmp_path / "m"), "float32")}
    for name in weights:
        changed = dict(weights) | {name: weights[name] + 0.01}
        save_file(changed, file, metadata={"format": "pt"})
        names.add(folder_name(open_directory(tmp_path / "m"), "float32"))
    assert len(names) == 1 + len(weights)


def test_other_code_of_the_model_makes_it_another(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(checkpoints("llama"), model)
    names = {folder_name(open_directory(model), "float32")}
    for middle in ("a", "b"):  # beyond the first page, and before the last
        (model / "modeling.py").write_text("#" * 9000 + middle + "#" * 9000)
        names.add(folder_name(open_directory(model), "float32"))
    assert len(names) == 3


def test_every_model_revision_dtype_and_kind_has_a_folder_of_its_own(
    checkpoint: Checkpoint, checkpoints: Checkpoints
) -> None:
    other = open_directory(checkpoints("llama"))
    names = {
        folder_name(checkpoint, "float32"),
        folder_name(checkpoint, "bfloat16"),
        folder_name(other, "float32"),
        folder_name(replace(checkpoint, revision="abc"), "float32"),
        folder_name(replace(checkpoint, kind="pickle"), "float32"),
        folder_name(replace(checkpoint, model_id="someone/model"), "float32"),
    }
    assert len(names) == 6
    assert folder_name(checkpoint, "float32") in names


def test_a_checkpoint_that_changed_on_disk_gets_another_folder_and_a_copy_does_not(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints("llama"), tmp_path / "m")
    before = folder_name(open_directory(tmp_path / "m"), "float32")
    file = next((tmp_path / "m").glob("*.safetensors"))
    os.utime(file, (1, 1))
    assert folder_name(open_directory(tmp_path / "m"), "float32") == before
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert folder_name(open_directory(tmp_path / "m"), "float32") != before


_HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_waits_for_the_first(checkpoint: Checkpoint, tmp_path: Path) -> None:
    lock = tmp_path / f"{folder_name(checkpoint, 'float32')}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        released = threading.Event()

        def release() -> None:
            released.set()
            first.stdin.close()  # type: ignore[union-attr]

        timer = threading.Timer(0.3, release)
        timer.start()
        with open_conversion_folder(tmp_path, checkpoint, "float32"):
            assert released.is_set()
        timer.join()


_KILLED = """
import os, signal, sys
from pathlib import Path
from predictor.weights.converted import ConvertedCheckpoint
from tests.serving import blocks_on_disk, bring_up
ConvertedCheckpoint.remove = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
bring_up(folder, device_map=blocks_on_disk(folder), offload_folder=sys.argv[2])
"""


def test_what_a_killed_start_left_beside_its_store_is_removed_by_the_next(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    model = checkpoints("mixtral")
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(model), str(tmp_path)], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.store"))) == 1
    (left,) = (folder for folder in tmp_path.iterdir() if folder.is_dir())
    assert list(left.glob("*.safetensors"))
    up = bring_up(model, device_map=blocks_on_disk(model), offload_folder=str(tmp_path))
    assert up.sources == {"store"}
    assert not left.exists()


def test_what_a_process_streams_from_is_left_until_it_ends(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """One streams modules from converted weights; others write a store, and use it."""
    model = checkpoints("mixtral")
    flags = {"device_map": "disk", "offload_folder": str(tmp_path)}
    first = bring_up(model, offload_store="never", max_memory='{"cpu": "1330KiB"}', **flags)
    assert not first.prepared.placement.by_block
    expected = first.tokens([7, 8, 9], max_new_tokens=4)
    for _ in range(2):
        other = bring_up(model, offload_store="always", **flags)
        assert other.sources == {"store"}
        assert other.tokens([7, 8, 9], max_new_tokens=4) == expected
        other.weights.release()
        assert first.tokens([7, 8, 9], max_new_tokens=4) == expected
    assert [folder for folder in tmp_path.iterdir() if folder.is_dir()]
    first.weights.release()
    bring_up(model, offload_store="always", **flags)
    assert not [folder for folder in tmp_path.iterdir() if folder.is_dir()]


def test_an_edit_of_the_files_gets_a_folder_beside_the_one_in_use(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Also where no sample of their bytes changes, which a touch stands for."""
    model, offload = tmp_path / "m", tmp_path / "offload"
    shutil.copytree(checkpoints("mixtral"), model)
    with open_conversion_folder(offload, open_directory(model), "float32") as first:
        (first.path / "weight.safetensors").write_bytes(b"old")
    next(model.glob("*.safetensors")).touch()
    with open_conversion_folder(offload, open_directory(model), "float32") as second:
        assert second.path != first.path
    assert (first.path / "weight.safetensors").read_bytes() == b"old"
    first.close()
    with open_conversion_folder(offload, open_directory(model), "float32") as third:
        assert third.path == second.path
    assert not first.path.exists()
    second.close()
    third.close()


def test_no_offload_folder_is_one_sentence(checkpoint: Checkpoint) -> None:
    with (
        pytest.raises(ConfigurationError, match="--offload_folder"),
        open_conversion_folder(None, checkpoint, "float32"),
    ):
        pass


def test_an_offload_folder_that_cannot_be_made_is_one_sentence(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigurationError, match="cannot be written"),
        open_conversion_folder(tmp_path / "file" / "folder", checkpoint, "float32"),
    ):
        pass


def test_two_models_on_one_volume_answer_each_with_its_own_weights(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Both convert tensors of the same names; transformers alone would mix them."""
    flags = {"device_map": "disk", "allow_pickle": True, "offload_folder": str(tmp_path)}
    flags |= {"offload_store": "never"}
    alone = bring_up(checkpoints("llama", pickle=True), device_map="cpu", allow_pickle=True)
    first = bring_up(checkpoints("llama", pickle=True), **flags)
    second = bring_up(checkpoints("llama-tied", pickle=True), **flags)
    folders = [folder for folder in tmp_path.iterdir() if folder.is_dir()]
    assert len(folders) == 2
    assert all(list(folder.glob("*.safetensors")) for folder in folders)
    tokens = [up.tokens([7, 8, 9, 10], max_new_tokens=8) for up in (alone, first, second)]
    assert tokens[0] == tokens[1] != tokens[2]
