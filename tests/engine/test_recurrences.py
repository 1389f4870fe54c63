"""One step of a recurrence: the outputs and states that transformers' own functions give."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import pytest
import torch

from predictor.engine.generation.recurrences import STEPS
from predictor.private.recurrences import StepFunctions
from tests.states import noisy

ROWS, HEADS, SIZE, STATE = 3, 4, 8, 6


def own_function(family: str, name: str) -> Any:
    return getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)


Call = tuple[list[torch.Tensor], dict[str, Any]]
"""The arguments after the state, by position and by name."""


def mamba_call(dtype: torch.dtype) -> Call:
    channels = (ROWS, HEADS)
    return [
        torch.randn(channels, dtype=dtype),
        torch.randn(channels, dtype=dtype),
        -torch.rand(HEADS, STATE),
        torch.randn(ROWS, STATE, dtype=dtype),
        torch.randn(ROWS, STATE, dtype=dtype),
        torch.randn(HEADS, dtype=dtype),
    ], {
        "z": torch.randn(channels, dtype=dtype),
        "dt_bias": torch.randn(HEADS),
        "dt_softplus": True,
    }


def mamba2_call(dtype: torch.dtype, groups: int, *, is_gated: bool) -> Call:
    inputs = (ROWS, HEADS, SIZE)
    return [
        torch.randn(inputs, dtype=dtype),
        torch.randn(ROWS, HEADS, 1, dtype=dtype).expand(inputs),
        -torch.rand(HEADS, 1, 1).expand(-1, SIZE, STATE),
        torch.randn(ROWS, groups, STATE, dtype=dtype),
        torch.randn(ROWS, groups, STATE, dtype=dtype),
        torch.randn(HEADS, 1, dtype=dtype).expand(-1, SIZE),
    ], {
        "z": torch.randn(inputs, dtype=dtype) if is_gated else None,
        "dt_bias": torch.randn(HEADS, 1, dtype=dtype).expand(-1, SIZE),
        "dt_softplus": True,
    }


def delta_inputs(dtype: torch.dtype, groups: int, *decays: int) -> dict[str, Any]:
    return {
        "query": torch.randn(ROWS, 1, groups, STATE, dtype=dtype),
        "key": torch.randn(ROWS, 1, groups, STATE, dtype=dtype),
        "value": torch.randn(ROWS, 1, HEADS, SIZE, dtype=dtype),
        "g": -torch.rand(ROWS, 1, HEADS, *decays),
        "beta": torch.rand(ROWS, 1, HEADS, dtype=dtype),
        "output_final_state": True,
        "use_qk_l2norm_in_kernel": True,
    }


def check_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == expected.dtype
    bound = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "groups", "is_gated"),
    [("mamba", 0, True), ("mamba2", 1, False), ("mamba2", 2, True), ("falcon_h1", 4, True)],
)
def test_a_step_of_mamba(
    family: str, groups: int, is_gated: bool, dtype: torch.dtype, state_dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    name = "mamba2_selective_state_update" if groups else "mamba_selective_state_update"
    given, named = mamba2_call(dtype, groups, is_gated=is_gated) if groups else mamba_call(dtype)
    shape = (ROWS, HEADS, SIZE, STATE) if groups else (ROWS, HEADS, STATE)
    expected_state = torch.randn(shape, dtype=state_dtype)
    state = expected_state.clone()
    expected = own_function(family, name)(expected_state, *given, **named)
    check_close(STEPS[name](state, *given, **named), expected, dtype)
    check_close(state, expected_state, min((dtype, state_dtype), key=lambda one: one.itemsize))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "name", "groups", "decays"),
    [
        ("qwen3_next", "torch_recurrent_gated_delta_rule", 2, ()),
        ("olmo_hybrid", "torch_recurrent_gated_delta_rule", 4, ()),
        ("kimi_linear", "recurrent_kimi_delta_attention", 4, (STATE,)),
    ],
)
def test_a_step_of_the_delta_rule(
    family: str, name: str, groups: int, decays: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    inputs = delta_inputs(dtype, groups, *decays)
    state = torch.randn(ROWS, HEADS, STATE, SIZE)
    expected = own_function(family, name)(**inputs, initial_state=state.clone())
    output, final = STEPS[name](**inputs, initial_state=state)
    check_close(output, expected[0], dtype)
    check_close(final, expected[1], torch.float32)
    assert final is state  # in whose memory it was computed


FAMILIES = {
    "mamba": "mamba_selective_state_update",
    "nemotron_h": "mamba2_selective_state_update",
    "qwen3_5": "torch_recurrent_gated_delta_rule",
    "bailing_hybrid": "recurrent_kimi_delta_attention",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_has_its_own_function_again_after_a_pass_that_failed(family: str) -> None:
    name, model = FAMILIES[family], noisy(family)
    own = own_function(family, name)
    with contextlib.suppress(ArithmeticError), StepFunctions(model, STEPS).replaced():
        assert own_function(family, name) is STEPS[name]
        raise ArithmeticError("once")
    assert own_function(family, name) is own
