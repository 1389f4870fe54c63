"""A model's tokenizer is opened before a weight is read, at `plan` too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2

from predictor import cli
from predictor.errors import CheckpointError
from predictor.tasks.loading import open_tokenizer
from tests.checkpoint.test_weight_files import LFS_POINTER
from tests.conftest import Checkpoints
from tests.encoding.checkpoints import make_encoder

LETTERS = "\u2581aeto"
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def sentencepiece_model(
    kind: int, special: str = "<unk> <s> </s>", letters: str = LETTERS
) -> bytes:
    """A model file as sentencepiece writes it, with a piece for each letter."""
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = kind, kind == BPE
    model.trainer_spec.unk_id = special.split().index("<unk>")
    pieces = [(name, UNKNOWN if name == "<unk>" else CONTROL) for name in special.split()]
    pieces += [(f"<0x{byte:02X}>", BYTE) for byte in range(256 if kind == BPE else 0)]
    for piece, type_ in [*pieces, *((letter, NORMAL) for letter in LETTERS)]:
        model.pieces.add(piece=piece, type=type_, score=0.0)
    return bytes(model.SerializeToString())


def with_tokenizer(source: Path, folder: Path, name: str, content: bytes, kind: str) -> Path:
    """Copies a model, with one file of a tokenizer of this class in place of its own."""
    shutil.copytree(source, folder)
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / name).write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    return folder


FILES = {
    "LlamaTokenizer": ("tokenizer.model", sentencepiece_model(BPE)),
    "GemmaTokenizer": ("tokenizer.model", sentencepiece_model(BPE, "<pad> <eos> <bos> <unk>")),
    "T5Tokenizer": ("spiece.model", sentencepiece_model(UNIGRAM, "<pad> </s> <unk>")),
    "PegasusTokenizer": ("spiece.model", sentencepiece_model(UNIGRAM, "<pad> </s> <unk>")),
    "XLMRobertaTokenizer": ("sentencepiece.bpe.model", sentencepiece_model(UNIGRAM)),
    "CamembertTokenizer": ("sentencepiece.bpe.model", sentencepiece_model(UNIGRAM)),
}


@pytest.mark.parametrize("kind", FILES)
def test_models_of_sentencepiece_are_tokenizers(
    checkpoints: Checkpoints, tmp_path: Path, kind: str
) -> None:
    name, content = FILES[kind]
    folder = with_tokenizer(checkpoints("llama"), tmp_path / "model", name, content, kind)

    tokenizer = open_tokenizer(folder, trust_remote_code=False)

    ids = tokenizer("a tea to eat").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a tea to eat"


def test_transformers_own_copy_of_the_schema_is_no_obstacle(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """In a process of its own, since a schema can be imported once."""
    name, content = FILES["LlamaTokenizer"]
    folder = with_tokenizer(checkpoints("llama"), tmp_path / "model", name, content, "Llama")
    code = (
        "import pathlib, transformers.utils.sentencepiece_model_pb2_new\n"
        "from predictor.tasks.loading import open_tokenizer\n"
        f"open_tokenizer(pathlib.Path({str(folder)!r}), trust_remote_code=False)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def _ranks(source: Path, folder: Path) -> Path:
    ranks = b"".join(b"%s %d\n" % (b64encode(bytes([i])), i) for i in range(256))
    return with_tokenizer(source, folder, "tokenizer.model", ranks, "LlamaTokenizer")


def _pointer(source: Path, folder: Path) -> Path:
    content = LFS_POINTER.encode()
    return with_tokenizer(source, folder, "tokenizer.model", content, "LlamaTokenizer")


def _nothing(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    for file in folder.glob("*token*"):
        file.unlink()
    return folder


def _empty(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    (folder / "tokenizer.json").write_text("")
    return folder


def _empty_model(source: Path, folder: Path) -> Path:
    return with_tokenizer(source, folder, "tokenizer.model", b"", "LlamaTokenizer")


def _pointer_that_opens(source: Path, folder: Path) -> Path:
    return with_tokenizer(source, folder, "vocab.txt", LFS_POINTER.encode(), "BertTokenizer")


def _pointer_of_a_slow_class(source: Path, folder: Path) -> Path:
    return with_tokenizer(source, folder, "vocab.txt", LFS_POINTER.encode(), "EsmTokenizer")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_ranks, "tiktoken"),
        (_pointer, "tokenizer.model is a pointer of Git LFS"),
        (_empty, "tokenizer.json is empty"),
        (_empty_model, "tokenizer.model is empty"),
        (_pointer_that_opens, "vocab.txt is a pointer of Git LFS"),
        (_pointer_of_a_slow_class, "vocab.txt is a pointer of Git LFS"),
        (_nothing, "holds no tokenizer that can be used"),
    ],
)
def test_a_plan_names_what_a_tokenizer_lacks(
    checkpoints: Checkpoints,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path, Path], Path],
    reason: str,
) -> None:
    folder = change(checkpoints("llama"), tmp_path / "model")

    assert cli.main(["plan", str(folder), "--max_model_len=16"]) == 78
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", LFS_POINTER])
@pytest.mark.parametrize(
    "name", ["tokenizer.model", "tokenizer.model.v3", "merges.txt", "vocab.txt", "lid.model"]
)
def test_files_beside_a_tokenizer_are_not_its_own(
    checkpoints: Checkpoints, tmp_path: Path, name: str, content: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints("llama"), folder)
    (folder / name).write_text(content)

    assert open_tokenizer(folder, trust_remote_code=False)("a tea").input_ids


def test_a_plan_of_a_bare_config_needs_no_tokenizer(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", str(checkpoints("llama") / "config.json"), "--memory=4GiB"]) == 0


def test_a_plan_names_what_a_task_lacks_of_its_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_encoder(tmp_path, "bert", "fill_mask")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))

    assert cli.main(["plan", str(folder), "--task=fill_mask", "--max_model_len=16"]) == 78
    assert "mask" in capsys.readouterr().err


def test_a_pickle_in_place_of_a_tokenizer_is_refused(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = with_tokenizer(checkpoints("llama"), tmp_path / "m", "vocab.json", b"\x80", "GPT2")

    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        open_tokenizer(folder, trust_remote_code=False)
