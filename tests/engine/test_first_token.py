"""A model that cannot answer ends its start, and the exit code says that a restart is in vain."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MambaConfig

from predictor.engine.warmup import first_token
from predictor.errors import LoadFailed, ModelUnusable, PredictorError, WeightsUnreadable
from tests.checkpoints import make_checkpoint
from tests.conftest import Checkpoints
from tests.encoding.checkpoints import make_encoder, make_encoder_decoder
from tests.serving import bring_up

NAN = float("nan")


def with_value(source: Path, folder: Path, part: str, value: float, rows: int = 1000) -> Path:
    """Copies a model, with one value in the rows of tensors with this part in their names."""
    shutil.copytree(source, folder)
    for file in folder.glob("*.safetensors"):
        state = load_file(file)
        for name in [name for name in state if part in name]:
            state[name][:rows] = value
        save_file(state, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("dtype", "value", "remedy"),
    [
        ("float32", NAN, "its weights are damaged"),
        ("float16", 6e4, "try dtype bfloat16"),
        ("bfloat16", 3e38, "try dtype float32"),
    ],
)
def test_the_dtype_and_a_remedy_are_named_where_no_token_can_be_chosen(
    checkpoints: Checkpoints, tmp_path: Path, dtype: str, value: float, remedy: str
) -> None:
    folder = with_value(checkpoints("llama", shards=False), tmp_path / "model", "norm", value)

    with pytest.raises(ModelUnusable, match=rf"Llama.* no finite numbers in {dtype}.*; {remedy}"):
        bring_up(folder, dtype=dtype)


def _one_row(folder: Path) -> Path:
    return with_value(make_checkpoint(folder / "a", "llama"), folder / "b", "lm_head", NAN, rows=1)


def _served_alone(folder: Path) -> Path:
    config = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=264, state_size=8)
    source = make_checkpoint(folder / "a", "mamba", config=config)
    return with_value(source, folder / "b", "norm_f", NAN)


def _encoder(folder: Path) -> Path:
    source = make_encoder(folder / "a", "bert", "token_classification")
    return with_value(source, folder / "b", "embeddings.LayerNorm", NAN)


def _encoder_decoder(folder: Path) -> Path:
    return with_value(make_encoder_decoder(folder / "a", "t5"), folder / "b", "final_layer", NAN)


@pytest.mark.parametrize("make", [_one_row, _served_alone, _encoder, _encoder_decoder])
def test_models_of_every_kind_are_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(ModelUnusable, match="no finite numbers in float32"):
        bring_up(make(tmp_path))


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (AttributeError("no cache"), ModelUnusable, "fails on its first token: no cache"),
        (OSError(5, "Input/output error"), LoadFailed, "Input/output error"),
        (torch.OutOfMemoryError("CUDA out of memory"), LoadFailed, "out of memory"),
        (WeightsUnreadable("A block is gone."), WeightsUnreadable, "A block is gone."),
    ],
)
def test_errors_of_the_first_token_say_whether_a_restart_may_help(
    error: Exception, kind: type[PredictorError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence), first_token():
        raise error


def test_nobody_reads_of_the_meta_device() -> None:
    with pytest.raises(ModelUnusable) as raised, first_token():
        torch.empty(2, device="meta").to("cpu")

    assert "uses an offloaded weight outside of the layer that has it" in str(raised.value)
    assert "meta" not in str(raised.value)
