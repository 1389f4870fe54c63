"""Sample the next token of one sequence from the model's logits.

Every sequence has its own sampler, with its own generator, and sees its own row alone. So its
tokens do not depend on the rest of the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from predictor.engine.generation.sampling_params import SamplingParams, Token

_FEW = 512
"""Tokens that nearly always hold the probability mass of `top_p`; sorting them is quick."""


class Sampler:
    """Samples the tokens of one sequence."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        """Begin a sequence.

        Args:
            params: The sampling parameters.
            prompt: Tokens of the prompt.
        """
        self._params = params
        self._prompt = prompt
        self._prompt_ids: set[int] = set()
        self._generated: Counter[int] = Counter()
        self._generator: torch.Generator | None = None
        self.is_greedy = (
            params.temperature == 0
            and params.repetition_penalty == 1
            and params.presence_penalty == 0
            and params.frequency_penalty == 0
            and not params.logit_bias
            and params.logprobs is None
        )
        """Whether the next token is just the most probable one, without log probabilities."""

    def sample(self, logits: torch.Tensor) -> Token:
        """Return the next token, and count it as generated.

        Args:
            logits: Of shape (vocabulary,), in any floating dtype.

        Raises:
            ArithmeticError: The logits are not finite.
        """
        raw = logits.float()
        if not bool(torch.isfinite(raw.max())):
            raise ArithmeticError("the logits are not finite")
        scores = self._penalised(raw)
        token = self._draw(scores) if self._params.temperature > 0 else int(scores.argmax())
        self._generated[token] += 1
        return self._with_logprobs(token, raw)

    def _penalised(self, raw: torch.Tensor) -> torch.Tensor:
        """A copy of the logits, after penalties and bias."""
        params = self._params
        scores = raw.clone()
        if params.repetition_penalty != 1:
            # Tokens of an encoder have ids below 0 (`encoder_decoder_runner`); they do not count.
            self._prompt_ids = self._prompt_ids or {token for token in self._prompt if token >= 0}
            ids = torch.tensor(sorted(self._prompt_ids | self._generated.keys()), device=raw.device)
            held = scores[ids]
            factor = params.repetition_penalty
            scores[ids] = torch.where(held < 0, held * factor, held / factor)
        if self._generated and (params.presence_penalty or params.frequency_penalty):
            ids = torch.tensor(list(self._generated), device=raw.device)
            counts = torch.tensor(list(self._generated.values()), device=raw.device)
            scores[ids] -= params.presence_penalty + params.frequency_penalty * counts
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=raw.device)
            scores[ids] += torch.tensor(list(params.logit_bias.values()), device=raw.device)
        return scores

    def _draw(self, scores: torch.Tensor) -> int:
        params = self._params
        scores = scores / params.temperature
        if params.top_k == 0 and params.top_p == 1:
            return self._pick(torch.softmax(scores, dim=-1))
        probabilities, ids = _most_probable(scores, params.top_k, params.top_p)
        before = probabilities.cumsum(dim=-1) - probabilities
        kept = probabilities * (before < params.top_p)
        return int(ids[self._pick(kept)])

    def _pick(self, weights: torch.Tensor) -> int:
        if self._generator is None:
            self._generator = torch.Generator(device=weights.device)
            seed = self._params.seed
            self._generator.seed() if seed is None else self._generator.manual_seed(seed)
        return int(torch.multinomial(weights, 1, generator=self._generator))

    def _with_logprobs(self, token: int, raw: torch.Tensor) -> Token:
        if self._params.logprobs is None:
            return Token(token)
        logprobs = torch.log_softmax(raw, dim=-1)
        best = logprobs.topk(min(self._params.logprobs, len(logprobs)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Token(token, float(logprobs[token]), top)


def _most_probable(
    scores: torch.Tensor, top_k: int, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The probabilities among the `top_k` tokens that hold `top_p`, falling, and their ids."""
    if top_k:
        values, ids = scores.topk(min(top_k, len(scores)))
        return torch.softmax(values, dim=-1), ids
    values, ids = scores.topk(min(_FEW, len(scores)))
    probabilities = torch.exp(values - scores.logsumexp(dim=-1))
    if float(probabilities.sum()) < top_p:
        values, ids = scores.sort(descending=True)
        probabilities = torch.softmax(values, dim=-1)
    return probabilities, ids


def most_probable_tokens(logits: torch.Tensor) -> list[int | None]:
    """Return the most probable token of each row; None if its logits are not finite.

    Args:
        logits: Of shape (rows, vocabulary).
    """
    best, ids = logits.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    return [index if good else None for index, good in zip(ids.tolist(), finite, strict=True)]


def sample_each(
    samplers: Sequence[Sampler | None], logits: torch.Tensor
) -> list[Token | Exception | None]:
    """Return the next token of each row, the error if sampling fails, or None if none is due.

    Args:
        samplers: For each row the sampler of its sequence; None if no token is due.
        logits: Of shape (rows, vocabulary).
    """
    tokens: list[Token | Exception | None] = []
    for row, (sampler, best) in enumerate(zip(samplers, most_probable_tokens(logits), strict=True)):
        if sampler is None:
            tokens.append(None)
        elif sampler.is_greedy and best is not None:
            tokens.append(Token(best))
        else:
            tokens.append(_sample(sampler, logits[row]))
    return tokens


def _sample(sampler: Sampler, logits: torch.Tensor) -> Token | Exception:
    try:
        return sampler.sample(logits)
    # If sampling fails, it fails its own sequence.
    except Exception as error:
        return error
