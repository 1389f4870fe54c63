"""How the command ``batch`` opens its files."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from predictor import batch_command
from predictor.batch.input_file import Shard
from predictor.batch.output_file import OutputFile
from predictor.batch_command import Batch, BatchJob
from predictor.errors import PredictorError
from predictor.settings import read_settings


def open_batch(folder: Path) -> Batch:
    (folder / "input.jsonl").write_bytes(b"{}\n")
    settings = read_settings({"model_dir": str(folder)}, environ={})
    return Batch(settings, BatchJob(folder / "input.jsonl", folder / "output.jsonl", Shard()))


def test_an_output_that_another_pod_has_is_no_wrong_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_command, "_LOCK_SECONDS", 0.1)
    held = OutputFile(tmp_path / "output.jsonl")
    with pytest.raises(PredictorError, match="Another process writes the output") as raised:
        open_batch(tmp_path)
    held.close()

    assert raised.value.exit_code == 1


def test_the_output_of_a_pod_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    held = OutputFile(tmp_path / "output.jsonl")
    threading.Timer(0.3, held.close).start()
    batch = open_batch(tmp_path)

    assert not batch.is_done
    batch.close()
