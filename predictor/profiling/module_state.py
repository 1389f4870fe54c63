"""Whether a model keeps the state of a sequence in its modules, where no others can have theirs."""

from __future__ import annotations

import contextlib

from transformers import PreTrainedModel

from predictor.private.transformers import is_stateful
from predictor.profiling.block_dedup import BlockDeduplicator
from predictor.profiling.blocks import find_blocks
from predictor.profiling.meta_device import FAILURES
from predictor.profiling.meta_run import MetaRun
from predictor.profiling.sequence_cache import in_modules

_TOKENS = 2
"""Tokens of the forward pass that may leave a state."""


def keeps_state_in_modules(model: PreTrainedModel) -> bool:
    """Return whether a forward pass leaves a state in the modules of a model's blocks.

    Args:
        model: The model, on the meta device.
    """
    if not is_stateful(model):
        return False
    blocks = [model.get_submodule(name) for name in find_blocks(model)]
    deduplicator = BlockDeduplicator(blocks, model.config.get_text_config(decoder=True))
    before = in_modules(blocks)
    with contextlib.suppress(*FAILURES):
        MetaRun(model, blocks, deduplicator).run(1, _TOKENS)
    old = {id(tensor) for own in before for tensor in own}
    return any(id(tensor) not in old for own in in_modules(blocks) for tensor in own)
