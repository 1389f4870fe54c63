"""Makes the model of a checkpoint on the meta device what its files say that it is."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.linear.layers import NOTHING_PACKED, PackedLayers
from predictor.profiling.blocks import find_blocks
from predictor.quantization.packing import layers_to_pack
from predictor.quantization.replacement import pack_layers
from predictor.verification.tensors import open_tensors
from predictor.verification.ties import separate_ties
from predictor.verification.weights import check_weights


def verify_model(
    skeleton: PreTrainedModel,
    checkpoint: Checkpoint,
    weights_dtype: str,
    *,
    samples: bool = False,
) -> tuple[Checkpoint, PackedLayers]:
    """Pack a model's layers and part its ties as stored, and check that its weights are there.

    Args:
        skeleton: The model, unpacked, on the meta device.
        checkpoint: The checkpoint, whose files need not be there yet.
        weights_dtype: What to pack the layers of an unquantised checkpoint to.
        samples: Whether to compare samples of weights that should be equal, and not the whole.

    Returns:
        The checkpoint with what was found out about it, and the packed layers.

    Raises:
        CheckpointError: The files are not those of the model, or are damaged.
        ConfigurationError: The weights cannot be had in this dtype.
    """
    stored = open_tensors(checkpoint)
    if stored is not None:
        checkpoint = replace(checkpoint, separate=separate_ties(skeleton, stored, samples=samples))
    layers = layers_to_pack(skeleton, checkpoint, find_blocks(skeleton), weights_dtype)
    # Layers that are quantised while they are loaded are stored as the unpacked model has them.
    is_plain = layers is NOTHING_PACKED or bool(layers.quantised_to)
    if stored is not None and is_plain:
        check_weights(skeleton, stored.specs, checkpoint)
    if layers is not NOTHING_PACKED:
        pack_layers(skeleton, layers)
    if stored is not None and not is_plain:
        check_weights(skeleton, stored.specs, checkpoint)
    return checkpoint, layers
