"""A quantised checkpoint on the hub is planned by its config, and loaded by its files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from predictor import startup
from predictor.settings import read_settings
from predictor.weights.progress import Progress
from tests.checkpoint.test_hub import use
from tests.hub import make_server
from tests.quantization.forms import FORMS
from tests.quantization.models import Quantised, make_quantised, replies
from tests.quantization.test_served import stopped
from tests.serving import Up, resources, task_of


@pytest.fixture(params=[("llama", "int4"), ("qwen3_moe", "fp8-block"), ("llama", "nf4")], ids=str)
def published(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Quantised]:
    """A quantised checkpoint in several files, on a hub on the loopback."""
    name, form = request.param
    quantised = make_quantised(tmp_path / "made", name, FORMS[form], shards=3)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server = make_server("127.0.0.1", 0, quantised.folder, repository="me/model")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    use(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield quantised
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_is_planned_before_its_files_are_there_and_served_after(published: Quantised) -> None:
    flags = {"model_id": "me/model", "max_model_len": 128, "dtype": "float32"}
    settings = read_settings(flags, environ={})
    checkpoint = startup.open_checkpoint(settings)
    assert checkpoint.stored is None
    prepared = startup.prepare(settings, checkpoint, resources())
    assert prepared.packed.title == published.form.title
    started = startup.bring_up(settings, prepared, Progress())
    up = Up(task_of(started, settings), prepared, Progress(), started.weights)
    assert replies(up) == published.tokens
    stopped(up)
