"""The variants of `quality.py`: a model whose layers hold the values that their formats mean."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from predictor.errors import CheckpointError
from predictor.linear.formats.int4 import Int4
from predictor.linear.formats.int8 import Int8
from predictor.profiling.blocks import find_blocks
from predictor.quantization.quantising import layers_to_quantise

Format = Int8 | Int4
Formats = Mapping[str, Format]
"""The formats of layers by their names; others stay."""


@dataclass(frozen=True, slots=True)
class Variants:
    """A model and how its layers may be quantised.

    Attributes:
        model: The model in float32.
        blocks: The names of its blocks.
        head: The name of its head.
    """

    model: Any
    blocks: tuple[str, ...]
    head: str

    @classmethod
    def of(cls, folder: Path) -> Variants:
        """Load a checkpoint."""
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        embeddings = model.get_output_embeddings()
        (head,) = (name for name, module in model.named_modules() if module is embeddings)
        return cls(model, find_blocks(model), head)

    def formats(self, kept: Sequence[str]) -> Iterator[tuple[str, Formats]]:
        """Yield the variants: the predictor's own first, then others.

        Args:
            kept: Kinds of layers, the last parts of their names, that stay at int8 together.
        """
        int8, int4 = self._own("int8"), self._own("int4")
        yield "bf16", {}
        yield "int8", int8
        yield "int8, head too", int8 | {self.head: Int8()}
        yield "int4", int4
        yield "int4, head int8", int4 | {self.head: Int8()}
        yield "int4, head too", int4 | {self.head: Int4()}
        for group in (64, 128):
            yield f"int4, groups of {group}", {name: self._fit(name, group) for name in int4}
        kinds = dict.fromkeys(_kind(name) for name in int4)
        for kind in kinds:
            yield f"int4, {kind} int8", int4 | {n: Int8() for n in int4 if _kind(n) == kind}
        if set(kept) & set(kinds):
            yield "int4, kept int8", int4 | {n: Int8() for n in int4 if _kind(n) in kept}
        ends = {"first": self.blocks[:1], "last": self.blocks[-1:]}
        ends["first and last"] = (*ends["first"], *ends["last"])
        for title, blocks in ends.items():
            kept = {name: Int8() for name in int4 if _is_in(name, blocks)}
            yield f"int4, {title} block int8", int4 | kept

    def _own(self, weights_dtype: str) -> dict[str, Format]:
        """Return the formats that the predictor chooses."""
        packed = layers_to_quantise(self.model, self.blocks, weights_dtype)
        return {name: matrix.format for name, matrix in packed.linears.items()}  # type: ignore[misc]

    def _fit(self, name: str, group: int) -> Format:
        """Return int4 in groups, or int8 if the layer's inputs are no multiple of these."""
        layer = self.model.get_submodule(name)
        try:
            Int4(group).tensors(layer.out_features, layer.in_features)
        except CheckpointError:
            return Int8()
        return Int4(group)

    @contextlib.contextmanager
    def quantised(self, formats: Formats) -> Iterator[int]:
        """Give layers the values of their formats within the block; yield the model's bytes."""
        originals = {name: self._weight(name) for name in formats}
        size = sum(2 * parameter.numel() for parameter in self.model.parameters())
        try:
            for name, form in formats.items():
                weight = originals[name]
                packed = form.quantise(weight)
                size += sum(tensor.nbytes for tensor in packed.values()) - 2 * weight.numel()
                self._set(name, form.unpack(packed, 0, len(weight), torch.float32).contiguous())
            yield size
        finally:
            for name, weight in originals.items():
                self._set(name, weight)

    def _weight(self, name: str) -> torch.Tensor:
        weight: torch.Tensor = self.model.get_submodule(name).weight.data
        return weight

    def _set(self, name: str, values: torch.Tensor) -> None:
        """Give a layer other values, and the embeddings if they are the head."""
        self.model.get_submodule(name).weight.data = values


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _is_in(name: str, blocks: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)


def windows_of(folder: Path, texts: Iterator[str], window: int, most: int) -> list[torch.Tensor]:
    """Return windows of tokens, of shape (1, window), cut from one text after another."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = itertools.chain.from_iterable(tokenizer.encode(text).ids for text in texts)
    taken = torch.tensor(list(itertools.islice(ids, max(1, most // window) * window)))
    return [piece[None] for piece in taken.split(window) if len(piece) == window]


@torch.inference_mode()
def losses_of(model: nn.Module, windows: list[torch.Tensor]) -> list[float]:
    """Return the mean loss of each window in nats."""
    losses = []
    for window in windows:
        logits = model(window).logits[0, :-1]
        losses.append(float(functional.cross_entropy(logits, window[0, 1:])))
    return losses
