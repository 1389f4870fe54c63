"""The header of a safetensors file."""

import os
import struct

import pytest
from safetensors import SafetensorError, safe_open

from predictor.checkpoint.safetensors_header import read_header
from predictor.checkpoint.weight_files import read_stored
from predictor.errors import CheckpointError
from tests.checkpoint.test_weight_files import write
from tests.checkpoints import make_checkpoint


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"1234567", "is no safetensors file, or is damaged"),
        (b"\xff" * 16, "is no safetensors file, or is damaged"),
        (struct.pack("<Q", 100) + b'{"a": ', "is cut short: it ends within its header"),
        (struct.pack("<Q", 9000) + b"[" * 9000, "is no safetensors file, or is damaged"),
    ],
)
def test_a_file_without_a_whole_header_is_named(tmp_path, content, reason):
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(CheckpointError, match=reason):
        read_stored(tmp_path)


@pytest.mark.parametrize(
    ("header", "size", "reason"),
    [
        ({"a": ENTRY}, 5, "has bytes that belong to no tensor"),
        ({"a": ENTRY | {"shape": [2]}}, 4, r"a has 4 bytes, .* F32 of shape \[2\]"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [8, 12]}}, 12, "b does not begin"),
        ({"a": ENTRY, "b": ENTRY}, 4, "b does not begin"),
    ],
)
def test_what_the_library_refuses_is_refused_by_name(tmp_path, header, size, reason):
    file = write(tmp_path / "model.safetensors", header, b"x" * size)

    with pytest.raises(SafetensorError), safe_open(file, framework="pt"):
        pass
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is damaged: .*{reason}"):
        read_header(file)


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
