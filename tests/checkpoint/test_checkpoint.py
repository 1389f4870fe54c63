"""Finding a model: directories, and a hub that answers on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from predictor.checkpoint.checkpoint import (
    open_directory,
    read_config,
)
from predictor.errors import CheckpointError
from predictor.profiling.footprint import build_on_meta
from tests.checkpoints import ALL_CONFIGS, CONFIGS, make_checkpoint
from tests.conftest import Checkpoints
from tests.encoding.checkpoints import minilm_folder
from tests.hub import COMMIT, make_server


def test_a_directory_tells_kind_and_dtype(checkpoints: Checkpoints) -> None:
    import torch

    checkpoint = open_directory(checkpoints("llama", dtype=torch.bfloat16))
    assert (checkpoint.kind, checkpoint.dtype) == ("safetensors", "bfloat16")
    assert len(checkpoint.stored.files) > 1  # type: ignore[union-attr]


def test_pickles_are_refused_unless_they_are_allowed(checkpoints: Checkpoints) -> None:
    folder = checkpoints("opt", pickle=True)
    with pytest.raises(CheckpointError, match="--allow_pickle"):
        open_directory(folder)
    assert open_directory(folder, allow_pickle=True).kind == "pickle"


def test_safetensors_are_taken_where_both_kinds_lie(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints("gpt2", shards=False), tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    assert open_directory(tmp_path / "m").kind == "safetensors"


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("{", "config.json"),
        ("[]", "config.json"),
        ('{"model_type": "no-such-model"}', "no-such-model"),
        ('{"model_type": "llama", "hidden_size": "abc"}', "hidden_size"),
        ('{"model_type": "llama", "x": ' + "[" * 100_000 + "}", "config.json"),
        ('{"model_type": "x", "auto_map": {"AutoConfig": "c.C"}}', "trust_remote_code"),
        ('{"model_type": "llama", "quantization_config": "gptq"}', "config.json"),
    ],
)
def test_a_config_that_cannot_be_served_is_one_sentence(
    tmp_path: Path, config: str, word: str
) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "c.py").write_text("raise SystemExit('code of the model ran')")
    with pytest.raises(CheckpointError, match=word) as raised:
        open_directory(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_that_a_test_makes_changes_no_config_of_another(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama", dtype=torch.bfloat16)
    build_on_meta(CONFIGS["llama"], "bfloat16")
    assert CONFIGS["llama"].dtype is None
    assert ALL_CONFIGS["llama"].dtype is None


def test_a_directory_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    CONFIGS["llama"].save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_directory(tmp_path)


@pytest.mark.parametrize("has_config", [False, True])
def test_a_gguf_file_is_refused_by_name(tmp_path: Path, has_config: bool) -> None:
    (tmp_path / "llama-Q4_K_M.gguf").write_bytes(b"GGUF")
    if has_config:
        CONFIGS["llama"].save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"llama-Q4_K_M\.gguf is a GGUF file.*safetensors"):
        open_directory(tmp_path)


def test_remote_code_of_a_directory_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}'
    )
    (tmp_path / "configuration_mine.py").write_text(
        "from transformers import LlamaConfig\nclass MineConfig(LlamaConfig):\n"
        "    model_type = 'mine'\n"
    )
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        read_config(tmp_path)
    assert type(read_config(tmp_path, trust_remote_code=True)).__name__ == "MineConfig"


def test_a_model_with_another_head_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "bert", "architectures": ["BertForNextSentencePrediction"]}'
    )
    with pytest.raises(CheckpointError, match="BertForNextSentencePrediction"):
        open_directory(tmp_path)


@pytest.fixture
def hub(checkpoints: Checkpoints) -> Iterator[tuple[str, list[str]]]:
    with serving(checkpoints("gpt2")) as endpoint:
        yield endpoint


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub on the loopback, and the paths of its requests."""
    server = make_server("127.0.0.1", 0, folder, repository="me/model", token="hf_secret")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", server.RequestHandlerClass.requested  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def run_with_hub(
    code: str, endpoint: str, home: Path, token: str = "hf_secret"
) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own: the hub's library reads its environment at import."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


OPEN = """
from predictor.checkpoint.checkpoint import fetch_weights, open_hub
from predictor.errors import PredictorError
try:
    checkpoint = open_hub("{model}", None)
    print("small", sorted(f.name for f in checkpoint.path.iterdir() if f.suffix == ".safetensors"))
    whole = fetch_weights(checkpoint)
    print("whole", len(whole.stored.files), whole.revision)
except PredictorError as error:
    print(type(error).__name__, error)
"""


def test_weights_come_from_the_hub_after_the_small_files(
    hub: tuple[str, list[str]], tmp_path: Path, checkpoints: Checkpoints
) -> None:
    endpoint, requested = hub
    done = run_with_hub(OPEN.format(model="me/model"), endpoint, tmp_path)
    shards = len(list(checkpoints("gpt2").glob("*.safetensors")))
    assert "small []" in done.stdout, done.stderr
    assert f"whole {shards} {COMMIT}" in done.stdout
    weights = [
        index
        for index, path in enumerate(requested)
        if ".safetensors" in path and "index" not in path
    ]
    config = [index for index, path in enumerate(requested) if path.endswith("/config.json")]
    assert max(config) < min(weights)


LAYOUT = """
from predictor.tasks.sentence_layout import read_layout
from predictor.checkpoint.checkpoint import open_hub
checkpoint = open_hub("me/model", None)
print(checkpoint.task, read_layout(checkpoint.path).pooling)
"""


def test_a_layout_on_the_hub_says_what_the_model_is_for_before_a_weight_is_fetched(
    tmp_path: Path,
) -> None:
    with serving(minilm_folder()) as (endpoint, requested):
        done = run_with_hub(LAYOUT, endpoint, tmp_path)
    assert done.stdout == "text_embedding mean\n", done.stderr
    assert not any(path.endswith(".safetensors") for path in requested)


def test_a_model_that_the_hub_has_not_is_one_sentence(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    done = run_with_hub(OPEN.format(model="me/other"), hub[0], tmp_path)
    assert "CheckpointError The hub has no me/other" in done.stdout, done.stderr


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    done = run_with_hub(OPEN.format(model="me/model"), "http://127.0.0.1:9", tmp_path)
    assert "HubUnreachable me/model must come from the hub" in done.stdout, done.stderr
    assert "--model_dir" in done.stdout
    assert "Traceback" not in done.stderr
