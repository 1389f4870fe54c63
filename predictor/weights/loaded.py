"""A loaded model: what it holds while it serves, and the end of that."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from predictor.heartbeat import Heartbeat, ReadActivities, Timeouts
from predictor.mixture.forward import count_tokens
from predictor.mixture.heat import ExpertHeat
from predictor.weights.block_source import BlockSourceResolver
from predictor.weights.experts.cache import ExpertCache
from predictor.weights.experts.device_cache import DeviceExpertCache
from predictor.weights.filling import Filling
from predictor.weights.store.warmup_cache import WarmupCache
from predictor.weights.streaming.hooks import Streaming
from predictor.weights.streaming.parts import StreamedModel


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, with every part where the placement puts it.

    Attributes:
        model: The model, in evaluation mode. Exactly one forward pass may run at a time: neither
            our hooks nor Accelerate's are thread-safe.
        streamed: The parts that are streamed.
        experts: The experts that are read one by one; None if none are.
        resolver: The source of the streamed blocks.
        warmup_cache: Measurements of earlier starts, kept on the offload volume.
        filling: The blocks that stay in main memory and may still arrive.
    """

    model: PreTrainedModel
    streamed: StreamedModel
    experts: ExpertCache | DeviceExpertCache | None
    resolver: BlockSourceResolver
    warmup_cache: WarmupCache
    filling: Filling

    @property
    def streaming(self) -> Streaming | None:
        """The streamed blocks; None if no block is streamed."""
        return self.streamed.blocks

    @property
    def buffer_bytes(self) -> int:
        """Bytes of main memory that its blocks are streamed through, and that its experts take."""
        parts = [buffer for streaming in self.streamed.all for buffer in streaming.loader.buffers]
        experts = () if self.experts is None else self.experts.buffers
        return sum(buffer.tensor.nbytes for buffer in (*parts, *experts))

    @property
    def read_activity(self) -> ReadActivities | None:
        """The reads from disk under way; None if nothing is read while serving."""
        parts = [streaming.loader.read_activity for streaming in self.streamed.all]
        experts = None if self.experts is None else self.experts.reader.activity
        read = (*parts, experts, self.filling.read_activity)
        activities = [activity for activity in read if activity is not None]
        return ReadActivities(activities) if activities else None

    def heartbeat(self, timeouts: Timeouts) -> Heartbeat:
        """Return the heartbeat of an engine that runs the model.

        Args:
            timeouts: The least bounds.
        """
        heartbeat = Heartbeat(timeouts, self.read_activity)
        self.filling.passes = heartbeat.passes
        return heartbeat

    @property
    def device_bytes(self) -> int:
        """Bytes of the executing accelerator's memory that blocks and experts are copied to."""
        parts = sum(streaming.loader.device_bytes for streaming in self.streamed.all)
        return parts + (0 if self.experts is None else self.experts.device_bytes)

    def count_heat(self) -> ExpertHeat:
        """Return the heat of the experts, which grows from now on; of no layer without experts."""
        slotted = () if self.experts is None else self.experts.layers
        return ExpertHeat(count_tokens(self.model), slotted)

    def serve(self) -> None:
        """Mark the offload volume as used. Call it when requests are answered."""
        self.resolver.serve()

    def release(self) -> None:
        """End filling, and the use of the offload volume, as in a clean stop."""
        self.filling.close()
        self.resolver.release()
