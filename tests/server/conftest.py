"""One server for the tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import byte_tokenizer
from tests.conftest import Checkpoints
from tests.mixture.families import family_config
from tests.server.process import Served, serve


@pytest.fixture(scope="package")
def served(checkpoints: Checkpoints) -> Iterator[Served]:
    """A BLOOM with half of its blocks on disk."""
    with serve(
        checkpoints("bloom"),
        '--max_memory={"cpu": "1500KiB"}',
        "--max_model_len=128",
        "--prefill_chunk=16",
    ) as server:
        yield server.await_ready()


@pytest.fixture(scope="package")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral whose experts have 25 MB, since a small one fits beside the staging of experts."""
    folder = tmp_path_factory.mktemp("mixture")
    torch.manual_seed(0)
    config = family_config("mixtral", intermediate_size=1024)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
