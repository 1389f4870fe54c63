"""The content of a checkpoint on disk, from file names and headers."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from predictor.checkpoint.safetensors_header import read_header, read_stored
from predictor.errors import CheckpointError
from tests.checkpoints import make_checkpoint


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


def test_a_pickle_is_known_by_its_name_and_size_alone(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")

    stored = read_stored(tmp_path)

    assert (stored.kind, stored.weight_bytes, stored.dtype) == ("pickle", 17, None)


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
    "content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "\x00\xff"]
)
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="latin-1")

    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        read_stored(tmp_path)


def test_an_index_that_names_no_files_is_incomplete(tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": 5}}')

    with pytest.raises(CheckpointError, match="5 is named"):
        read_stored(tmp_path)


def test_a_file_that_is_cut_short_is_named(tmp_path):
    make_checkpoint(tmp_path, "gpt2", shards=False)
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)

    with pytest.raises(CheckpointError, match=r"model\.safetensors is cut short"):
        read_stored(tmp_path)


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        {"a": 3},
        {"a": {}},
        {"a": ENTRY | {"data_offsets": [4]}},
        {"a": ENTRY | {"data_offsets": ["x", "y"]}},
        {"a": ENTRY | {"data_offsets": [4, 0]}},
        {"a": ENTRY | {"dtype": None}},
        {"a": {"shape": [1], "data_offsets": [0, 4]}},
    ],
)
def test_a_damaged_header_is_named(tmp_path, header):
    file = write(tmp_path / "model.safetensors", header, b"1234")

    with pytest.raises(CheckpointError, match="is no safetensors file, or is damaged"):
        read_header(file)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 16])
def test_a_file_without_a_whole_header_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(CheckpointError, match="is no safetensors file, or is damaged"):
        read_stored(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become someone who may not read")
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_file_that_may_not_be_read_is_named(tmp_path, name):
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    (tmp_path / name).write_text("{}")
    (tmp_path / name).chmod(0o000)
    os.seteuid(65534)
    try:
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read: Permission denied"):
            read_stored(tmp_path)
    finally:
        os.seteuid(0)
