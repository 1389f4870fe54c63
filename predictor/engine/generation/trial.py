"""Runs a model for two tokens on the meta device, as the engine will, before a weight is read."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.batchability import run_two_tokens
from predictor.engine.generation.encoder_decoder_runner import EncoderDecoderRunner
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.serial_runner import SerialRunner
from predictor.engine.warmup import trial_on_meta

_META = torch.device("meta")


def check_two_tokens(model: PreTrainedModel) -> None:
    """Check that a model computes a token, and one more with the cache of the first.

    What needs the values of tensors cannot be checked, and passes.

    Args:
        model: The model, on the meta device.

    Raises:
        ModelUnusable: The model fails, and will with its weights.
    """
    with trial_on_meta(model):
        if model.config.is_encoder_decoder:
            run_two_tokens(EncoderDecoderRunner(model, device=_META, alone=True), model)
            return
        runner = SerialRunner(model, device=_META)
        for position in range(2):
            runner.run([SequenceChunk(-1, position, [0])])
