"""Whether a model keeps the state of a sequence in its modules, where no others can have theirs."""

from __future__ import annotations

import contextlib

from transformers import PreTrainedModel

from predictor.private.transformers import is_stateful
from predictor.profiling.blocks import find_blocks
from predictor.profiling.meta_device import FAILURES
from predictor.profiling.sequence_cache import in_modules
from predictor.profiling.text_model import run_text


def keeps_state_in_modules(model: PreTrainedModel) -> bool:
    """Return whether a forward pass leaves a state in the modules of a model's blocks.

    Args:
        model: The model, on the meta device.
    """
    if not is_stateful(model):
        return False
    blocks = [model.get_submodule(name) for name in find_blocks(model)]
    before = in_modules(blocks)
    with contextlib.suppress(*FAILURES):
        run_text(model)
    old = {id(tensor) for own in before for tensor in own}
    return any(id(tensor) not in old for own in in_modules(blocks) for tensor in own)
