"""Sample the next token of every row of a forward pass, together where that is possible.

Greedy rows, and rows that are drawn without a seed, take a few operations and one transfer for all
of them, however many they are. Only a row with a seed waits for its own draw. Each row's
distribution depends on its own logits alone. A row without finite logits fails alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from predictor.engine.generation.sampler import FEW, Sampler, best_allowed, log_mass
from predictor.engine.generation.sampling_params import SamplingParams, Token
from predictor.engine.generation.token_mask import AllowedTokens
from predictor.errors import GenerationFailed

_NOT_FINITE, _UNDECIDED = -1, -2
"""In place of a token: its logits are not finite; the tokens looked at hold too little mass."""

_SLICE_ELEMENTS = 2**18
"""Logits that are drawn from at one time, in whole rows. A draw takes up to 13 copies of them in
float32: 13 MiB, or 13 copies of one row if that is more."""

Result = Token | Exception | None
"""The next token of a row, its error, or None if no token is due."""


class BatchSampler:
    """Samples for all sequences. Those without a seed share its generator."""

    def __init__(self) -> None:
        """Begin with a generator that nothing repeats."""
        self._generator: torch.Generator | None = None

    @torch.inference_mode()
    def sample(self, samplers: Sequence[Sampler | None], logits: torch.Tensor) -> list[Result]:
        """Return the next token of each row, its error if sampling fails, or None if none is due.

        Args:
            samplers: For each row the sampler of its sequence; None if no token is due.
            logits: Of shape (rows, vocabulary), in any floating dtype; they are not changed.
        """
        try:
            return self._sample(samplers, logits)
        # If sampling fails, it fails its own sequence.
        except Exception as error:
            if len(samplers) == 1:
                return [error]
            rows = [logits[row : row + 1] for row in range(len(samplers))]
            pairs = zip(samplers, rows, strict=True)
            return [self.sample([sampler], row)[0] for sampler, row in pairs]

    def _sample(self, samplers: Sequence[Sampler | None], logits: torch.Tensor) -> list[Result]:
        best, choices = logits.max(dim=-1)
        choices = torch.where(torch.isfinite(best), choices, _NOT_FINITE)
        if any(sampler is not None and sampler.has_no_choice for sampler in samplers):
            raise GenerationFailed("None of allowed_token_ids may follow.")  # before a row is drawn
        confined = _confined(samplers, choices)
        rows = [
            (row, sampler)
            for row, sampler in enumerate(samplers)
            if sampler is not None and not sampler.takes_best
        ]
        for row, allowed in confined.items():
            choices[row] = best_allowed(logits[row], allowed)
        most = max(1, _SLICE_ELEMENTS // logits.shape[-1])
        for first in range(0, len(rows), most):
            self._choose(rows[first : first + most], logits, choices)
        tokens = choices.tolist()
        due = zip(samplers, tokens, strict=True)
        results = [None if sampler is None else _result(token) for sampler, token in due]
        for first in range(0, len(samplers), most):
            part = slice(first, first + most)
            results[part] = _with_logprobs(
                samplers[part], logits[part], choices[part], results[part]
            )
        for sampler, token in zip(samplers, tokens, strict=True):
            if sampler is not None and token >= 0:
                sampler.count(token)
        return results

    def _choose(
        self, rows: list[tuple[int, Sampler]], logits: torch.Tensor, choices: torch.Tensor
    ) -> None:
        """Replace the choices of rows that are not just the most probable token."""
        index = torch.tensor([row for row, _ in rows], device=logits.device)
        scores, finite = logits[index].float(), choices[index] != _NOT_FINITE
        samplers = [sampler for _, sampler in rows]
        for row, sampler in enumerate(samplers):
            if sampler.has_penalties or sampler.mask is not None:
                sampler.penalise(scores[row])
        chosen = self._draw(samplers, scores, finite)
        choices[index] = torch.where(finite, chosen, _NOT_FINITE)

    def _draw(
        self, samplers: list[Sampler], scores: torch.Tensor, finite: torch.Tensor
    ) -> torch.Tensor:
        """Return a token for each row of scores; any token if they are not finite."""
        greedy, whole, filtered, own = _kinds(samplers)
        if len(whole) == len(samplers):
            return self._draw_whole(samplers, scores)
        if len(filtered) == len(samplers):
            return self._draw_filtered(samplers, scores)
        chosen = torch.zeros(len(samplers), dtype=torch.long, device=scores.device)
        if greedy:
            chosen[greedy] = scores[greedy].argmax(dim=-1)
        if whole:
            chosen[whole] = self._draw_whole([samplers[row] for row in whole], scores[whole])
        if filtered:
            some = [samplers[row] for row in filtered]
            chosen[filtered] = self._draw_filtered(some, scores[filtered])
        for row in own:
            if bool(finite[row]):
                chosen[row] = samplers[row].draw(scores[row])
        return chosen

    def _draw_whole(self, samplers: list[Sampler], scores: torch.Tensor) -> torch.Tensor:
        scores = scores / _column(scores, [sampler.params.temperature for sampler in samplers])
        return self._pick(torch.softmax(scores, dim=-1))

    def _draw_filtered(self, samplers: list[Sampler], scores: torch.Tensor) -> torch.Tensor:
        """Draw among the most probable tokens, of which few nearly always suffice."""
        params = [sampler.params for sampler in samplers]
        scores = scores / _column(scores, [each.temperature for each in params])
        few = min(max(each.top_k or FEW for each in params), scores.shape[-1])
        chosen = self._draw_among(params, scores, few)
        if few < scores.shape[-1] and not all(each.top_k for each in params):
            rows = (chosen == _UNDECIDED).nonzero().flatten().tolist()
            if rows:
                some = [params[row] for row in rows]
                chosen[rows] = self._draw_among(some, scores[rows], scores.shape[-1])
        return chosen

    def _draw_among(
        self, params: list[SamplingParams], scores: torch.Tensor, count: int
    ) -> torch.Tensor:
        """Draw among so many most probable tokens; `_UNDECIDED` if they hold less than `top_p`."""
        size = scores.shape[-1]
        values, ids = scores.topk(count)
        best = values[:, :1]
        top_k = _column(scores, [each.top_k or size for each in params])
        top_p = _column(scores, [each.top_p for each in params])
        is_cut = top_k < size
        values = values.masked_fill(torch.arange(count, device=scores.device) >= top_k, -torch.inf)
        cut, whole = values.logsumexp(dim=-1, keepdim=True), log_mass(scores, best)
        probabilities = torch.exp(values - torch.where(is_cut, cut, whole))
        before = probabilities.cumsum(dim=-1) - probabilities
        min_p = _column(scores, [each.min_p for each in params])
        least = min_p * probabilities[:, :1]
        is_kept = (before < top_p) & (probabilities >= least)
        is_kept[:, 0] = True  # a `top_p` too small for float32 is 0
        picked = self._pick(probabilities * is_kept)
        chosen = ids.gather(1, picked.unsqueeze(1)).squeeze(1)
        if count == size:
            return chosen
        suffices = is_cut | (probabilities.sum(dim=-1, keepdim=True) >= top_p)
        suffices |= probabilities[:, -1:] < least  # so is every token beyond
        return torch.where(suffices.squeeze(1), chosen, _UNDECIDED)

    def _pick(self, weights: torch.Tensor) -> torch.Tensor:
        """Draw an index of each row by its weights: where a uniform number falls among their sums.

        Args:
            weights: Of shape (rows, any), at least one above 0 in each row.
        """
        if self._generator is None:
            self._generator = torch.Generator(device=weights.device)
            self._generator.seed()
        sums = weights.cumsum(dim=-1, dtype=torch.float64)
        uniform = torch.rand(
            len(weights), 1, dtype=torch.float64, device=sums.device, generator=self._generator
        )
        picked = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)
        return picked.squeeze(1).clamp(max=weights.shape[-1] - 1)


def _confined(
    samplers: Sequence[Sampler | None], choices: torch.Tensor
) -> dict[int, AllowedTokens]:
    """Return what is allowed in the rows that take the best token, where the grammar bans that.

    Raises:
        GenerationFailed: A grammar cannot be followed any more. No row has been drawn yet.
    """
    allowed = {
        row: (sampler, sampler.mask.allowed())
        for row, sampler in enumerate(samplers)
        if sampler is not None and sampler.mask is not None
    }
    tokens = choices.tolist() if allowed else []
    return {
        row: each
        for row, (sampler, each) in allowed.items()
        if sampler.takes_best and tokens[row] != _NOT_FINITE and not each.has(tokens[row])
    }


def _kinds(samplers: list[Sampler]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Rows that take the best, draw among all, draw among the most probable, and have a seed."""
    kinds: tuple[list[int], ...] = ([], [], [], [])
    for row, sampler in enumerate(samplers):
        params = sampler.params
        if params.temperature == 0:
            kind = 0
        elif params.seed is not None:
            kind = 3
        else:
            is_whole = params.top_k == 0 and params.top_p == 1 and params.min_p == 0
            kind = 1 if is_whole else 2
        kinds[kind].append(row)
    greedy, whole, filtered, own = kinds
    return greedy, whole, filtered, own


def _column(scores: torch.Tensor, values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=scores.dtype, device=scores.device).unsqueeze(1)


def _result(token: int) -> Result:
    return ArithmeticError("the logits are not finite") if token < 0 else Token(token)


def _with_logprobs(
    samplers: Sequence[Sampler | None],
    logits: torch.Tensor,
    choices: torch.Tensor,
    results: list[Result],
) -> list[Result]:
    """Return the results with the log probabilities of the rows that need them."""
    rows = {
        row: min(sampler.params.logprobs, logits.shape[-1])
        for row, sampler in enumerate(samplers)
        if sampler is not None
        and sampler.params.logprobs is not None
        and isinstance(results[row], Token)
    }
    if not rows:
        return results
    index = torch.tensor(list(rows), device=logits.device)
    logprobs = torch.log_softmax(logits[index].float(), dim=-1)
    best = logprobs.topk(max(rows.values()))
    own = logprobs.gather(1, choices[index].unsqueeze(1))
    columns = torch.cat((own.double(), best.indices.double(), best.values.double()), dim=1).tolist()
    for (row, count), (logprob, *top) in zip(rows.items(), columns, strict=True):
        ids, values = top[: len(top) // 2], top[len(top) // 2 :]
        pairs = zip(map(int, ids[:count]), values[:count], strict=True)
        token = results[row]
        if isinstance(token, Token):
            results[row] = Token(token.id, logprob, tuple(pairs))
    return results
