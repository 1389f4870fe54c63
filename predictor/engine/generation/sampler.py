"""Chooses the next token of one sequence from the model's logits.

Every sequence has a sampler of its own, with its own generator, and sees its own row alone; so what
it chooses does not depend on who else is in the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from predictor.engine.generation.sampling_params import SamplingParams, Token

_FEW = 512
"""Tokens that nearly always hold the probability mass asked for; sorting them is quick."""


class Sampler:
    """The choice of one sequence's tokens."""

    def __init__(self, sampling: SamplingParams, prompt: Sequence[int]) -> None:
        """Begins a sequence.

        Args:
            sampling: The recipe.
            prompt: Tokens of the prompt.
        """
        self._recipe = sampling
        self._prompt = prompt
        self._seen: set[int] = set()
        self._said: Counter[int] = Counter()
        self._generator: torch.Generator | None = None
        self.is_plain = (
            sampling.temperature == 0
            and sampling.repetition_penalty == 1
            and sampling.presence_penalty == 0
            and sampling.frequency_penalty == 0
            and not sampling.logit_bias
            and sampling.logprobs is None
        )
        """Whether the most probable token is all that is asked for."""

    def choose(self, logits: torch.Tensor) -> Token:
        """Returns the next token, and takes it as said.

        Args:
            logits: Of shape (vocabulary,), in any floating dtype.

        Raises:
            ArithmeticError: The model gave no numbers.
        """
        raw = logits.float()
        if not bool(torch.isfinite(raw.max())):
            raise ArithmeticError("the logits are not finite")
        scores = self._penalised(raw)
        chosen = self._draw(scores) if self._recipe.temperature > 0 else int(scores.argmax())
        self._said[chosen] += 1
        return self._told(chosen, raw)

    def _penalised(self, raw: torch.Tensor) -> torch.Tensor:
        """A copy of the logits, after penalties and bias."""
        recipe = self._recipe
        scores = raw.clone()
        if recipe.repetition_penalty != 1:
            # What is read by an encoder has numbers below 0 (`paired_runner`), and is not said.
            self._seen = self._seen or {token for token in self._prompt if token >= 0}
            ids = torch.tensor(sorted(self._seen | self._said.keys()), device=raw.device)
            held = scores[ids]
            factor = recipe.repetition_penalty
            scores[ids] = torch.where(held < 0, held * factor, held / factor)
        if self._said and (recipe.presence_penalty or recipe.frequency_penalty):
            ids = torch.tensor(list(self._said), device=raw.device)
            counts = torch.tensor(list(self._said.values()), device=raw.device)
            scores[ids] -= recipe.presence_penalty + recipe.frequency_penalty * counts
        if recipe.logit_bias:
            ids = torch.tensor(list(recipe.logit_bias), device=raw.device)
            scores[ids] += torch.tensor(list(recipe.logit_bias.values()), device=raw.device)
        return scores

    def _draw(self, scores: torch.Tensor) -> int:
        recipe = self._recipe
        scores = scores / recipe.temperature
        if recipe.top_k == 0 and recipe.top_p == 1:
            return self._pick(torch.softmax(scores, dim=-1))
        probabilities, ids = _most_probable(scores, recipe.top_k, recipe.top_p)
        before = probabilities.cumsum(dim=-1) - probabilities
        kept = probabilities * (before < recipe.top_p)
        return int(ids[self._pick(kept)])

    def _pick(self, weights: torch.Tensor) -> int:
        if self._generator is None:
            self._generator = torch.Generator(device=weights.device)
            seed = self._recipe.seed
            self._generator.seed() if seed is None else self._generator.manual_seed(seed)
        return int(torch.multinomial(weights, 1, generator=self._generator))

    def _told(self, chosen: int, raw: torch.Tensor) -> Token:
        if self._recipe.logprobs is None:
            return Token(chosen)
        logprobs = torch.log_softmax(raw, dim=-1)
        best = logprobs.topk(min(self._recipe.logprobs, len(logprobs)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Token(chosen, float(logprobs[chosen]), top)


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


def choose_plain(logits: torch.Tensor) -> list[int | None]:
    """Returns the most probable token of each row; None where the model gave no numbers.

    Args:
        logits: Of shape (rows, vocabulary).
    """
    best, ids = logits.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    return [index if good else None for index, good in zip(ids.tolist(), finite, strict=True)]


def choose_each(
    samplers: Sequence[Sampler | None], logits: torch.Tensor
) -> list[Token | Exception | None]:
    """Returns the next token of each row, why it cannot be chosen, or None where none is due.

    Args:
        samplers: For each row the sampler of its sequence; None where no token is due.
        logits: Of shape (rows, vocabulary).
    """
    found: list[Token | Exception | None] = []
    for row, (sampler, best) in enumerate(zip(samplers, choose_plain(logits), strict=True)):
        if sampler is None:
            found.append(None)
        elif sampler.is_plain and best is not None:
            found.append(Token(best))
        else:
            found.append(_chosen(sampler, logits[row]))
    return found


def _chosen(sampler: Sampler, logits: torch.Tensor) -> Token | Exception:
    try:
        return sampler.choose(logits)
    # A recipe's failure is its own sequence's.
    except Exception as error:
        return error
