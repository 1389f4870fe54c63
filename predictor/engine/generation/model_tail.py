"""The part of a model after its last block, run over a few positions at a time.

A forward pass gives the logits of the last positions alone. Those of all positions of a chunk would
take more memory than the rest of the pass: 512 positions of a vocabulary of 128,000 take 250 MiB in
float32. So what the blocks return is kept, which is as small as their own activations. After the
pass the model runs again with that in place of its blocks, over as many positions as a forward pass
has rows at most, whose logits are within the plan. So the logits are what the model itself makes of
them, with its own scaling and capping, and with what the row's adapter adds to its head.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.prompt_tokens import PromptToken
from predictor.errors import RequestError
from predictor.private.forward_arguments import forward_arguments

_SLICE_ELEMENTS = 2**18
"""Logits whose probabilities are computed at one time, in whole rows, as in `batch_sampler`."""

_TOLERANCE = 0.02
"""Difference of two logits, as a fraction of the largest, that is no more than rounding."""


class ModelTail:
    """Computes the log probabilities of the tokens of prompts."""

    def __init__(self, model: Any, adapters: LoadedAdapters, positions: int) -> None:
        """Take a model.

        Args:
            model: The model, whose blocks are in its base model.
            adapters: The adapters that rows may use, attached to the model.
            positions: Positions whose logits may be in memory at one time, at least 1.
        """
        self._model, self._adapters, self._positions = model, adapters, max(1, positions)
        self._accepted = forward_arguments(model)
        self._exact: dict[str | None, bool] = {}

    @contextlib.contextmanager
    def recorded(self, rows: Sequence[SequenceChunk]) -> Iterator[list[Any]]:
        """Record in a list what the blocks return in a forward pass, if that is needed."""
        outputs: list[Any] = []
        if all(row.scores is None for row in rows):
            yield outputs
            return
        handle = self._model.base_model.register_forward_hook(
            lambda _module, _inputs, output: outputs.append(output)
        )
        try:
            yield outputs
        finally:
            handle.remove()

    def score(
        self, row: SequenceChunk, index: int, outputs: Sequence[Any], last: torch.Tensor
    ) -> None:
        """Compute the log probabilities that a row needs, or note why that cannot be done.

        Args:
            row: The row.
            index: Its place among the rows of what was recorded.
            outputs: What was recorded.
            last: The model's own logits after the row's last token, of shape (vocabulary,).
        """
        scores = row.scores
        if scores is None or not scores.targets:
            return
        if not self._suits(row, index, outputs, last):
            scores.error = RequestError(
                "The log probabilities of a prompt cannot be computed for this model."
            )
            return
        output = outputs[-1]
        hidden = output.last_hidden_state[index : index + 1, -len(row.tokens) :]
        hidden = hidden[:, scores.skipped :][:, : len(scores.targets)]
        for first in range(0, len(scores.targets), self._positions):
            part = slice(first, first + self._positions)
            logits = self._logits(output, hidden[:, part], row.adapter)
            scores.tokens += _scored(logits, scores.targets[part], scores.alternatives)

    def _suits(
        self, row: SequenceChunk, index: int, outputs: Sequence[Any], last: torch.Tensor
    ) -> bool:
        """Return whether the model has exact logits here with the row's adapter, tested once."""
        if row.adapter not in self._exact:
            loaded = {None, *self._adapters.names}
            self._exact = {name: exact for name, exact in self._exact.items() if name in loaded}
            self._exact[row.adapter] = self._is_exact(outputs, index, last, row.adapter)
        return self._exact[row.adapter]

    def _is_exact(
        self, outputs: Sequence[Any], index: int, last: torch.Tensor, adapter: str | None
    ) -> bool:
        """Return whether the last token's logits are those of the forward pass.

        Raises:
            ArithmeticError: Those of the forward pass are not finite.
        """
        if bool(torch.isnan(last).any()):
            raise ArithmeticError("the logits are not finite")
        hidden = getattr(outputs[-1], "last_hidden_state", None) if outputs else None
        if hidden is None or hidden.dim() != 3:
            return False
        logits = self._logits(outputs[-1], hidden[index : index + 1, -1:], adapter)[0].float()
        largest = float(last.float().abs().max())
        return bool((logits - last.float()).abs().max() <= _TOLERANCE * largest)

    def _logits(self, output: Any, hidden: torch.Tensor, adapter: str | None) -> torch.Tensor:
        """Return the logits of one row's hidden states, of shape (1, positions, features)."""
        extra = {"logits_to_keep": 0} if "logits_to_keep" in self._accepted else {}
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        replaced = type(output)(**{**output, "last_hidden_state": hidden})
        adapters = self._adapters.used_by([adapter], hidden.shape[1])
        with adapters, _returning(self._model.base_model, replaced):
            logits: torch.Tensor = self._model(input_ids=ids, use_cache=False, **extra).logits
        return logits[0]


@contextlib.contextmanager
def _returning(module: Any, output: Any) -> Iterator[None]:
    """Have a module return an output, without what it computes."""
    own = vars(module).get("forward")  # that of a hook around it
    module.forward = lambda *_inputs, **_options: output
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _scored(
    logits: torch.Tensor, targets: Sequence[int], alternatives: int
) -> Iterator[PromptToken]:
    """Yield the tokens that follow, by logits of shape (positions, vocabulary).

    Raises:
        ArithmeticError: Logits are not finite.
    """
    most = max(1, _SLICE_ELEMENTS // logits.shape[-1])
    for first in range(0, len(targets), most):
        part = slice(first, first + most)
        logprobs = torch.log_softmax(logits[part].float(), dim=-1)
        ids = torch.tensor(targets[part], device=logits.device).unsqueeze(1)
        own = logprobs.gather(1, ids)
        rank = 1 + (logprobs > own).sum(dim=-1, keepdim=True)
        best = logprobs.topk(min(alternatives, logits.shape[-1]))
        columns = (own.double(), rank.double(), best.indices.double(), best.values.double())
        rows = torch.cat(columns, dim=1).tolist()
        for token, (logprob, position, *top) in zip(targets[part], rows, strict=True):
            if math.isnan(logprob):
                raise ArithmeticError("the logits are not finite")
            half = len(top) // 2
            pairs = zip(map(int, top[:half]), top[half:], strict=True)
            yield PromptToken(token, logprob, int(position), tuple(pairs))
