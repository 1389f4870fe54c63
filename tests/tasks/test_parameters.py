"""Every generation parameter is checked, and refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from predictor.errors import RequestError
from predictor.tasks.parameters import parse_parameters
from predictor.tasks.request import GenerationParameters


def test_all_parameters_are_taken() -> None:
    given = {
        "max_new_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 0,
        "repetition_penalty": 1.2,
        "seed": 0,
        "stop": ["a", "b"],
        "return_full_text": True,
    }
    assert parse_parameters(given) == GenerationParameters(
        5, 0.0, 0.5, 0, 1.2, 0, ("a", "b"), return_full_text=True
    )


def test_nothing_said_and_null_are_the_same() -> None:
    assert parse_parameters({"seed": None, "stop": None}) == GenerationParameters()


def test_values_that_ask_for_nothing_are_accepted() -> None:
    assert parse_parameters({"top_k": -1, "stop": ""}) == GenerationParameters(top_k=0)
    assert parse_parameters({"stop": ["", "x"]}).stop == ("x",)


def test_a_single_stop_is_a_list_of_one() -> None:
    assert parse_parameters({"stop": "end"}).stop == ("end",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("max_new_tokens", "5"),
        ("max_new_tokens", 2**40),
        ("temperature", -0.1),
        ("temperature", 1e-40),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", float("-inf")),
        ("top_k", -2),
        ("top_k", 2.0),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-40),
        ("repetition_penalty", -2),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("stop", ["x"] * 17),
        ("stop", "x" * 1025),
        ("return_full_text", 1),
        ("return_full_text", "yes"),
    ],
)
def test_a_value_out_of_place_is_named(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name) as raised:
        parse_parameters({name: value})
    assert raised.value.http_status == 400
    assert len(str(raised.value)) < 120


def test_an_unknown_name_points_to_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'max_new_tokens'"):
        parse_parameters({"max_tokens": 5})


def test_an_unknown_name_unlike_any_lists_all_and_is_not_echoed_whole() -> None:
    with pytest.raises(RequestError, match="top_p") as raised:
        parse_parameters({"q" * 5000: 5})
    assert len(str(raised.value)) < 400


def test_a_number_in_an_error_has_all_its_digits() -> None:
    for value, shown in ((1.0000001, "1.0000001"), (2, "2"), (1e9, "1000000000")):
        with pytest.raises(RequestError, match=rf"at most 1, not {shown}\.$"):
            parse_parameters({"top_p": value})
