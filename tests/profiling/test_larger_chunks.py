"""The memory of larger chunks of prompts than the least one is planned without measuring each."""

from __future__ import annotations

import pytest
from transformers import MambaConfig

from predictor.profiling.footprint import build_on_meta, measure_footprint
from tests.checkpoints import ALL_CONFIGS


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "bloom"])
def test_a_larger_chunk_has_the_activations_that_it_is_measured_to_have_or_some_more(
    name: str,
) -> None:
    model = build_on_meta(ALL_CONFIGS[name], "float32")
    least = measure_footprint(model, max_model_len=128, prefill_chunk=16, largest_chunk=128)
    assert least.largest_chunk == 128
    for chunk in (32, 128):
        measured = measure_footprint(model, max_model_len=128, prefill_chunk=chunk)
        larger = least.with_chunk(chunk)
        assert larger.prefill_chunk == measured.prefill_chunk == chunk
        assert measured.activations <= larger.activations <= 1.3 * measured.activations + 4096
        assert larger.units == measured.units


def test_a_model_that_keeps_a_state_has_no_larger_chunk() -> None:
    config = MambaConfig(vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2)
    model = build_on_meta(config, "float32")
    footprint = measure_footprint(model, max_model_len=128, prefill_chunk=16, largest_chunk=128)
    assert footprint.largest_chunk == footprint.activations_per_chunk_token == 0
