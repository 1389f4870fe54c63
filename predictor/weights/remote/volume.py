"""The space on the offload volume that a model takes whose weights are fetched for loading."""

from __future__ import annotations

from dataclasses import dataclass

from predictor.checkpoint.remote_files import RemoteWeights
from predictor.placement.plan import Placement
from predictor.placement.units import Footprint
from predictor.weights.offload_config import OffloadConfig


@dataclass(frozen=True, slots=True)
class VolumeDemand:
    """Bytes on the offload volume, with the files of earlier starts.

    Attributes:
        least: Most bytes at one time, if nothing is kept of weights that stay in memory.
        most: Most bytes at one time, if they are kept, so that restarts fetch nothing.
    """

    least: int
    most: int


def volume_demand(
    remote: RemoteWeights, footprint: Footprint, placement: Placement, offload: OffloadConfig
) -> VolumeDemand:
    """Return the space that a start takes, and the ones after it.

    Weights that transformers converts are kept until their store is whole, and so lie there as
    stored, as converted and as in the store. Others are released block by block.

    Args:
        remote: The weights.
        footprint: The memory that the model needs.
        placement: The device of each part.
        offload: How offloaded parts are stored.
    """
    streamed, total = placement.tier("disk").weights, remote.total_bytes
    by_expert = bool(placement.experts) and footprint.experts_in_place
    converts = footprint.needs_conversion and not by_expert and streamed > 0
    is_other = converts or footprint.needs_cast
    has_store = offload.store == "always" or (offload.store == "auto" and is_other)
    stored = streamed if has_store else 0
    if converts:
        least = total + streamed + stored
        return VolumeDemand(least, least)
    served = footprint.without_draft_model().weights
    in_place = streamed * total // max(served, 1)
    least = (stored or in_place) + remote.largest
    return VolumeDemand(min(least, total + stored), total + stored)
