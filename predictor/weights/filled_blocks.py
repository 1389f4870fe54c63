"""Decides which blocks that stay in main memory may arrive while the model serves already.

Those are blocks that a processor computes where they stay, and that their checkpoint has as they
are served, or in another dtype. All others are loaded before: blocks for a GPU, those that are
packed or that transformers computes, those of a ``.bin`` file, those that share weights, and all of
a checkpoint that is fetched while it is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.safetensors_header import read_header
from predictor.linear.layers import NOTHING_PACKED, PackedLayers
from predictor.placement.plan import Placement
from predictor.private.stored_names import CheckpointNames, stored_parameters
from predictor.weights.extents import (
    BlockExtent,
    CheckpointIndex,
    find_in_checkpoint,
    parameters_of_blocks,
)
from predictor.weights.offloaded_parts import kept_blocks


@dataclass(frozen=True, slots=True)
class FilledBlocks:
    """The blocks of one start that are filled while the model serves.

    Attributes:
        names: The blocks, in execution order.
        index: The location of each of their parameters.
        without: Names of parameters that are not read with their block.
    """

    names: tuple[str, ...] = ()
    index: CheckpointIndex = field(default_factory=dict)
    without: Collection[str] = ()

    def device_map(self, skeleton: PreTrainedModel) -> dict[str, int | str]:
        """Return the entries of a device map for `from_pretrained`.

        The weights stay on the meta device. Buffers, and weights that are not read with their
        block, are loaded.
        """
        devices: dict[str, int | str] = dict.fromkeys(self.names, "meta")
        for name in self.names:
            block = skeleton.get_submodule(name)
            named = block.named_buffers(prefix=name, remove_duplicate=False)
            devices |= {key: "cpu" for key, _ in named}
            devices |= {key: "cpu" for key in self.without if key.startswith(f"{name}.")}
        return devices

    def extents(self, model: nn.Module) -> tuple[BlockExtent, ...]:
        """Return the extents of the blocks of a model, whose dtypes they are cast to.

        Raises:
            OSError: A file cannot be read.
        """
        parameters = parameters_of_blocks(model, self.names, without=self.without)
        return find_in_checkpoint(parameters, self.index) or ()


def find_filled_blocks(
    checkpoint: Checkpoint,
    placement: Placement,
    skeleton: PreTrainedModel,
    blocks: Sequence[str],
    packed: PackedLayers,
    *,
    without: Collection[str],
) -> FilledBlocks:
    """Return the blocks that may be filled while the model serves.

    Args:
        checkpoint: Files on local disk.
        placement: The plan.
        skeleton: The model on the meta device.
        blocks: The names of its blocks.
        packed: Its layers that stay packed.
        without: Names of parameters that are not read with their block.

    Raises:
        OSError: A file cannot be read.
    """
    stored = checkpoint.stored
    if placement.execution_device != "cpu" or packed != NOTHING_PACKED:
        return FilledBlocks()
    if checkpoint.kind != "safetensors" or stored is None or checkpoint.remote is not None:
        return FilledBlocks()
    kept = kept_blocks(placement, skeleton, blocks)
    if not kept:
        return FilledBlocks()
    parameters = parameters_of_blocks(skeleton, kept, without=without)
    names = {key for of_block in parameters.values() for key in of_block}
    files = {key: file for file in stored.files for key in read_header(file)}
    made = stored_parameters(CheckpointNames(skeleton), files, names.__contains__)
    index: dict[str, Mapping[str, str]] = {}
    for name, parameter in made.items():
        if not parameter.is_merged:
            ((source,),) = parameter.parts
            index[name] = {"safetensors_file": str(files[source]), "weight_name": source}
    filled = [
        name
        for name, of_block in parameters.items()
        if of_block and find_in_checkpoint({name: of_block}, index) is not None
    ]
    return FilledBlocks(tuple(filled), index, without)
