"""What a start has decided before it reads a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from predictor.checkpoint.adapters import Adapter
from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.lengths import Lengths
from predictor.checkpoint.task_detection import GENERATING
from predictor.draft_model import MeasuredDraft
from predictor.linear.layers import PackedLayers
from predictor.placement.plan import Placement
from predictor.placement.units import Footprint
from predictor.tasks.model_facts import ModelFacts, encoder_facts
from predictor.weights.offload_config import OffloadConfig


@dataclass(frozen=True, slots=True)
class Measured:
    """A model whose memory is measured, before it is placed on any resources.

    Attributes:
        checkpoint: The files of the model.
        skeleton: The model on the meta device.
        packed: Its layers that stay packed.
        adapters: The adapters that are served beside it.
        footprint: The memory that it needs.
        chunk: Most tokens of one forward pass, for which the activations are planned.
        rows: Most sequences of one forward pass.
        lengths: The most tokens of a sequence.
        notes: Sentences for the log about how it is served.
        draft: The draft model beside it; None without one.
    """

    checkpoint: Checkpoint
    skeleton: Any
    packed: PackedLayers
    adapters: tuple[Adapter, ...]
    footprint: Footprint
    chunk: int
    rows: int
    lengths: Lengths
    notes: tuple[str, ...]
    draft: MeasuredDraft | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model whose placement is decided and of which no weight is read yet.

    Attributes:
        checkpoint: The files of the model.
        skeleton: The model on the meta device.
        packed: Its layers that stay packed.
        adapters: The adapters that are served beside it.
        footprint: The memory that it needs.
        placement: The device of each of its parts.
        threads: Threads to compute with; None leaves the number to torch.
        chunk: Most tokens of one forward pass, for which the activations were planned.
        offload: How offloaded blocks are stored.
        lengths: The most tokens of a sequence.
        draft: The draft model beside it; None without one.
    """

    checkpoint: Checkpoint
    skeleton: Any
    packed: PackedLayers
    adapters: tuple[Adapter, ...]
    footprint: Footprint
    placement: Placement
    threads: int | None
    chunk: int
    offload: OffloadConfig
    lengths: Lengths
    draft: MeasuredDraft | None = None

    @property
    def encoder_facts(self) -> ModelFacts | None:
        """The facts of a model with an encoder task, which its config has; None for others."""
        checkpoint = self.checkpoint
        if checkpoint.task in GENERATING:
            return None
        length = self.footprint.max_model_len
        return encoder_facts(
            self.skeleton.config, task=checkpoint.task, path=checkpoint.path, max_model_len=length
        )
