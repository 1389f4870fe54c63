"""Which layers of a checkpoint's model are packed, if any are: the entry of this room."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.errors import CheckpointError, ConfigurationError
from predictor.linear.layers import NOTHING_PACKED, PackedLayers
from predictor.linear.schemes import infer, recognise
from predictor.quantization.discovery import find_by_rules, find_packed
from predictor.quantization.quantising import layers_to_quantise
from predictor.quantization.stored import StoredSpecs, read_specs

AS_STORED = "auto"
"""The `weights_dtype` that leaves the weights as the checkpoint has them."""


def layers_to_pack(
    skeleton: PreTrainedModel,
    checkpoint: Checkpoint,
    blocks: Sequence[str],
    weights_dtype: str = AS_STORED,
) -> PackedLayers:
    """Return the layers of a model that are served packed; `pack_layers` packs them.

    Args:
        skeleton: The model, unpacked, on the meta device.
        checkpoint: The checkpoint, whose files need not be there yet.
        blocks: The names of the model's blocks.
        weights_dtype: What to pack the layers of an unquantised checkpoint to; `AS_STORED` leaves
            them.

    Raises:
        CheckpointError: The checkpoint is quantised in a way that is not served.
        ConfigurationError: The checkpoint is quantised, and is to be quantised once more, or has
            no layer to quantise.
    """
    layers = _find(skeleton, checkpoint)
    if weights_dtype == AS_STORED:
        return layers
    if layers.title:
        raise ConfigurationError(
            f"weights_dtype {weights_dtype} cannot be had: the checkpoint is already quantised "
            f"as {layers.title}; leave weights_dtype out."
        )
    return layers_to_quantise(skeleton, blocks, weights_dtype)


def _find(skeleton: PreTrainedModel, checkpoint: Checkpoint) -> PackedLayers:
    quantization = checkpoint.quantization
    if quantization is None and (checkpoint.stored is None or checkpoint.stored.is_floating):
        return NOTHING_PACKED
    stored = _read(checkpoint)
    if quantization is not None:
        scheme = recognise(quantization.values, str(quantization.file))
        return find_packed(skeleton, scheme, stored) if stored else find_by_rules(skeleton, scheme)
    scheme = infer(stored)  # of no layer, if what is not plain are masks and positions
    return find_packed(skeleton, scheme, stored) if scheme.rules else NOTHING_PACKED


def _read(checkpoint: Checkpoint) -> StoredSpecs:
    if checkpoint.stored is None:
        return {}
    if checkpoint.kind != "safetensors":
        if checkpoint.quantization is not None:
            raise CheckpointError(
                f"{checkpoint.path} is quantised and holds .bin files; only safetensors files can "
                "be served packed."
            )
        return {}
    return read_specs(checkpoint.stored, is_quantised=checkpoint.quantization is not None)
