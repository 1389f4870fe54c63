"""The weights in a model directory, from file names and headers."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from predictor.checkpoint.weight_files import read_stored
from predictor.errors import CheckpointError
from tests.checkpoints import make_checkpoint

LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)


def write(path, header, data=b""):
    """Writes a safetensors file from a header as it is to lie there."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_single_file_is_read_from_its_header(tmp_path):
    # 3 x 4 half-precision numbers are 24 bytes; 5 integers of 8 bytes are 40
    tensors = {
        "a": torch.zeros(3, 4).half(),
        "ids": torch.zeros(5, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    stored = read_stored(tmp_path)

    assert stored.kind == "safetensors"
    assert stored.files == (tmp_path / "model.safetensors",)
    assert stored.weight_bytes == 24 + 40
    assert stored.dtype == "float16"


def test_the_dtype_is_that_of_most_bytes_not_of_most_tensors(tmp_path):
    tensors = {"big": torch.zeros(100, dtype=torch.bfloat16)}
    tensors |= {f"norm{index}": torch.zeros(2) for index in range(5)}
    save_file(tensors, tmp_path / "model.safetensors")

    assert read_stored(tmp_path).dtype == "bfloat16"


def test_a_checkpoint_without_floating_tensors_has_no_dtype(tmp_path):
    save_file({"a": torch.zeros(4, dtype=torch.int8)}, tmp_path / "model.safetensors")

    assert read_stored(tmp_path).dtype is None


def test_shards_are_added_up(tmp_path):
    make_checkpoint(tmp_path, "llama", dtype=torch.bfloat16)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())

    stored = read_stored(tmp_path)

    assert len(stored.files) > 1
    assert {file.name for file in stored.files} == set(index["weight_map"].values())
    assert stored.weight_bytes == index["metadata"]["total_size"]
    assert stored.dtype == "bfloat16"


def test_of_a_pickle_the_name_and_the_size_are_read(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    size = (tmp_path / "pytorch_model.bin").stat().st_size

    stored = read_stored(tmp_path)

    assert (stored.kind, stored.weight_bytes, stored.dtype) == ("pickle", size, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<html>", "is no file of PyTorch"),
        (LFS_POINTER.encode(), "is a pointer of Git LFS"),
        (b"PK\x03\x04 and no end", "is cut short"),
    ],
)
def test_a_pickle_that_is_none_is_named(tmp_path, content, reason):
    (tmp_path / "pytorch_model.bin").write_bytes(content)

    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin {reason}"):
        read_stored(tmp_path)


def test_a_pickle_of_the_old_format_is_taken(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)

    assert read_stored(tmp_path).files == (file,)


def test_safetensors_are_preferred_to_pickles_beside_them(tmp_path):
    make_checkpoint(tmp_path, "gpt2", shards=False)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")

    assert read_stored(tmp_path).kind == "safetensors"


def test_a_directory_without_weights_holds_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    assert read_stored(tmp_path) is None


def test_no_weight_is_read(tmp_path):
    """The data is a hole of 1 TiB: a read of it would not end within the test's time."""
    size = 1024**4
    file = write(
        tmp_path / "model.safetensors",
        {"a": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}},
    )
    os.truncate(file, file.stat().st_size + size)

    assert read_stored(tmp_path).weight_bytes == size


def test_a_missing_shard_is_named(tmp_path):
    make_checkpoint(tmp_path, "llama")
    lost = read_stored(tmp_path).files[1]
    lost.unlink()

    with pytest.raises(CheckpointError) as raised:
        read_stored(tmp_path)

    assert str(raised.value) == (
        f"{tmp_path} is incomplete: {lost.name} is named in model.safetensors.index.json "
        "but not there."
    )


def test_several_missing_shards_are_counted(tmp_path):
    names = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(names))

    with pytest.raises(CheckpointError, match=r"1\.safetensors and 2 more files are named"):
        read_stored(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"weight_map": {}}',
        "{}",
        '{"weight_map": []}',
        '{"weight_map": null}',
        "\x00\xff",
    ],
)
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="latin-1")

    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        read_stored(tmp_path)


def test_an_index_that_names_no_files_is_incomplete(tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": 5}}')

    with pytest.raises(CheckpointError, match="5 is named"):
        read_stored(tmp_path)


def test_a_file_of_git_lfs_is_named(tmp_path):
    make_checkpoint(tmp_path, "llama")
    pointer = read_stored(tmp_path).files[-1]
    pointer.write_text(LFS_POINTER)

    with pytest.raises(CheckpointError, match=rf"{pointer.name} is a pointer of Git LFS"):
        read_stored(tmp_path)


def test_an_empty_index_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").touch()

    with pytest.raises(CheckpointError, match=r"index\.json is empty"):
        read_stored(tmp_path)


def test_an_index_is_taken_beside_a_file_with_fewer_tensors(tmp_path):
    make_checkpoint(tmp_path, "llama")
    shards = read_stored(tmp_path).files
    save_file({"foreign": torch.zeros(3)}, tmp_path / "model.safetensors")

    stored = read_stored(tmp_path)

    assert (stored.files, stored.unused) == (shards, "model.safetensors")


@pytest.mark.parametrize(
    "damage",
    ["none", "a lost shard", "a damaged index", "a shard cut short", "a pointer for a shard"],
)
def test_a_single_file_is_taken_beside_an_index_of_no_more_tensors(tmp_path, damage):
    make_checkpoint(tmp_path, "llama")
    index, shards = tmp_path / "model.safetensors.index.json", read_stored(tmp_path).files
    tensors = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    if damage == "a lost shard":
        shards[0].unlink()
    elif damage == "a damaged index":
        index.write_text("{")
    elif damage == "a shard cut short":
        os.truncate(shards[0], shards[0].stat().st_size - 1)
    elif damage == "a pointer for a shard":
        shards[0].write_text(LFS_POINTER)

    stored = read_stored(tmp_path)

    assert stored.files == (tmp_path / "model.safetensors",)
    assert stored.unused == (index.name if damage == "none" else None)


@pytest.mark.parametrize("content", ["", LFS_POINTER, "<html>"])
def test_shards_are_taken_beside_a_damaged_single_file(tmp_path, content):
    make_checkpoint(tmp_path, "llama")
    shards = read_stored(tmp_path).files
    (tmp_path / "model.safetensors").write_text(content)

    assert read_stored(tmp_path).files == shards


def test_an_index_may_name_the_single_file_as_a_shard(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "more.safetensors")
    names = {"weight_map": {"a": "model.safetensors", "b": "more.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(names))

    stored = read_stored(tmp_path)

    assert [file.name for file in stored.files] == ["model.safetensors", "more.safetensors"]
    assert stored.unused is None
