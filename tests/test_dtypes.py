"""The table of dtypes against torch's own."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from predictor.dtypes import BY_CODE, ServingDType, item_bytes, name_of
from predictor.settings import read_settings


@pytest.mark.parametrize("dtype", BY_CODE.values(), ids=lambda dtype: dtype.name)
def test_names_and_sizes_are_those_of_torch(dtype) -> None:
    tensor = torch.zeros(1, dtype=getattr(torch, dtype.name))
    assert tensor.itemsize == dtype.itemsize == item_bytes(dtype.name)
    assert dtype.is_floating == (tensor.is_floating_point() and tensor.itemsize > 1)
    assert name_of(tensor.dtype) == dtype.name
    for alias in dtype.aliases:
        assert getattr(torch, alias) == tensor.dtype


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((name, name) for name in get_args(ServingDType)),
        ("half", "float16"),
        ("float", "float32"),
        ("torch.bfloat16", "bfloat16"),
    ],
)
def test_the_settings_take_names_and_aliases(text: str, name: str) -> None:
    assert read_settings({"dtype": text}, environ={}).dtype == name


def test_an_unknown_dtype_counts_two_bytes() -> None:
    assert item_bytes("float4_e2m1fn_x2") == 2
