from __future__ import annotations

import pytest

from predictor.errors import CheckpointError
from predictor.linear.published.layer_names import (
    Matcher,
    as_compressed_tensors,
    as_modelopt,
    as_parts,
    as_transformers,
    in_modules,
)

UP = "model.layers.1.mlp.up_proj"
UP_11 = "model.layers.11.mlp.up_proj"


def matched(matches: Matcher) -> list[str]:
    return [name for name in (UP, UP_11, "lm_head") if matches(name)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("model.layers.1", [UP]),
        ("model.layers.*", [UP, UP_11]),
        ("up_proj", [UP, UP_11]),
        ("mlp", []),
        ("lm_head", ["lm_head"]),
    ],
)
def test_transformers_takes_beginnings_and_ends(pattern: str, expected: list[str]) -> None:
    assert matched(as_transformers([pattern], "config.json")) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("lm_head", ["lm_head"]), ("up_proj", []), ("re:.*up_proj$", [UP, UP_11]), (UP, [UP])],
)
def test_compressed_tensors_takes_names_and_marked_expressions(
    pattern: str, expected: list[str]
) -> None:
    assert matched(as_compressed_tensors([pattern], "config.json")) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("lm_head", ["lm_head"]),
        ("model.layers.1", [UP]),
        ("model.layers.1*", [UP, UP_11]),
        ("*.mlp.*", [UP, UP_11]),
        ("mlp", [UP, UP_11]),
    ],
)
def test_modelopt_takes_wildcards_and_names_of_modules(pattern: str, expected: list[str]) -> None:
    assert matched(as_modelopt([pattern], "config.json")) == expected


def test_autoawq_takes_any_part() -> None:
    assert matched(as_parts(["yers.1.", "head"])) == [UP, "lm_head"]


def test_layers_are_in_modules_with_all_modules_above_them() -> None:
    assert matched(in_modules(["model.layers.1", "lm_head"])) == [UP, "lm_head"]


def test_no_pattern_matches_nothing() -> None:
    for matches in (
        as_transformers([], ""),
        as_compressed_tensors([], ""),
        as_modelopt([], ""),
        as_parts([]),
        in_modules([]),
    ):
        assert matched(matches) == []


def test_a_broken_expression_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"config.json: '\(\?:\(\)[^']*' is not a regular"):
        as_transformers(["("], "config.json")
