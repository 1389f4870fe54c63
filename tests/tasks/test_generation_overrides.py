"""The setting that takes the place of values of a model's generation config."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers import GenerationConfig

from predictor.errors import ConfigurationError
from predictor.tasks.generation_config import Defaults
from predictor.tasks.generation_overrides import check_overrides, with_overrides


def test_a_setting_takes_the_place_of_values_of_the_config() -> None:
    config = GenerationConfig(max_new_tokens=9, temperature=0.7, do_sample=True, top_p=0.5)
    defaults = Defaults.of(with_overrides(config, {"max_new_tokens": 5, "temperature": 0}), None)
    assert (defaults.max_new_tokens, defaults.temperature, defaults.top_p) == (5, 0.0, 0.5)
    assert config.max_new_tokens == 9


def test_a_null_takes_a_value_of_the_config_away() -> None:
    config = GenerationConfig(temperature=0.7, do_sample=True, top_p=0.5)
    defaults = Defaults.of(with_overrides(config, {"top_p": None, "temperature": None}), None)
    assert (defaults.temperature, defaults.top_p) == (1.0, 1.0)


def test_a_temperature_alone_makes_replies_sampled() -> None:
    greedy = GenerationConfig()
    assert Defaults.of(with_overrides(greedy, {"temperature": 0.5}), None).temperature == 0.5
    assert Defaults.of(with_overrides(greedy, {"max_new_tokens": 5}), None).temperature == 0
    explicit = {"temperature": 0.5, "do_sample": False}
    assert Defaults.of(with_overrides(greedy, explicit), None).temperature == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"max_tokens": 5}, "override_generation_config has the key 'max_tokens'; known are do_s"),
        ({"eos_token_id": 5}, "override_generation_config has the key 'eos_token_id'; known are"),
        ({"max_new_tokens": 0}, "override_generation_config: max_new_tokens must be between 1"),
        ({"top_p": "x"}, "override_generation_config: top_p must be a number"),
    ],
)
def test_a_wrong_value_of_the_setting_is_refused(overrides: Any, sentence: str) -> None:
    check_overrides({"max_new_tokens": 50, "temperature": 0.7, "top_k": -1, "top_p": None})
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        check_overrides(overrides)
