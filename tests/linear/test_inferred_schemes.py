from __future__ import annotations

import pytest
import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.awq import Awq
from predictor.linear.formats.bitsandbytes import BitsAndBytes4, BitsAndBytes8
from predictor.linear.formats.format import TensorSpec, WeightFormat
from predictor.linear.formats.fp8 import Fp8
from predictor.linear.formats.gptq import Gptq
from predictor.linear.formats.integers import PackedIntegers
from predictor.linear.formats.mxfp4 import Mxfp4
from predictor.linear.formats.nvfp4 import Nvfp4
from predictor.linear.schemes import infer
from tests.linear.published_configs import LAYER


def stored(weights: WeightFormat) -> dict[str, TensorSpec]:
    """The tensors of a checkpoint with one packed layer and one that is not."""
    packed = weights.tensors(512, 640)
    norm = {"model.norm.weight": TensorSpec(torch.bfloat16, (64,))}
    return {**norm, **{f"{LAYER}.{role}": spec for role, spec in packed.items()}}


@pytest.mark.parametrize(
    "weights",
    [
        Fp8(),
        Fp8((1, 128)),
        Fp8((1, 0), scale="weight_scale"),
        Fp8((0, 0), scale="weight_scale"),
        Fp8((1, 32), scale_dtype=torch.uint8),
        Nvfp4(),
        Nvfp4("weight", "weight_scale_2"),
        BitsAndBytes4(),
        BitsAndBytes4("fp4", nested=False),
        BitsAndBytes8(),
    ],
)
def test_tensors_show_their_format_without_a_config(weights: WeightFormat) -> None:
    scheme = infer(stored(weights))
    assert scheme.format_of(LAYER) == weights
    assert scheme.format_of("model.norm") is None


def test_the_grid_of_modelopt_shows_its_blocks() -> None:
    grid = {f"{LAYER}.weight_scale": TensorSpec(torch.float32, (4, 1, 5, 1))}
    scheme = infer({**stored(Fp8(scale="weight_scale")), **grid})
    assert scheme.format_of(LAYER) == Fp8(scale="weight_scale")


@pytest.mark.parametrize("weights", [Gptq(), Awq(), PackedIntegers(4, 128), Mxfp4("weight")])
def test_tensors_that_do_not_show_their_format_are_refused(weights: WeightFormat) -> None:
    with pytest.raises(CheckpointError, match=f"{LAYER} is packed as .* no config says"):
        infer(stored(weights))


def test_fp8_weights_without_scales_are_refused() -> None:
    tensors = {f"{LAYER}.weight": TensorSpec(torch.float8_e4m3fn, (512, 640))}
    with pytest.raises(CheckpointError, match="is packed as weight, and no config says"):
        infer(tensors)
