"""What sampling keeps for one sequence: its penalties, and its generator if it has a seed.

A sequence with a seed draws from its own row with its own generator, so its tokens do not depend on
the rest of the batch. `batch_sampler` draws the others together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from predictor.engine.generation.banned_tokens import BannedTokens
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.engine.generation.token_mask import AllowedTokens, TokenMask

FEW = 512
"""Tokens that nearly always hold the probability mass of `top_p`; sorting them is quick."""


class Sampler:
    """The sampling of one sequence.

    Attributes:
        params: The sampling parameters.
        ends: Tokens that end the sequence.
        mask: The tokens that a grammar allows; None for any text.
        is_greedy: Whether the next token is just the most probable one, without log probabilities.
        has_penalties: Whether penalties, a bias or banned tokens change the logits.
        takes_best: Whether the next token is the most probable one that its grammar allows.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        ends: frozenset[int] = frozenset(),
        mask: TokenMask | None = None,
    ) -> None:
        """Begin a sequence.

        Args:
            params: The sampling parameters.
            prompt: Tokens of the prompt.
            ends: Tokens that end the sequence.
            mask: The tokens that a grammar allows.
        """
        self.params, self.ends, self.mask = params, ends, mask
        self._prompt = prompt
        self._generated: Counter[int] = Counter()
        self._repeated: torch.Tensor | None = None
        self._distinct = 0
        self._generator: torch.Generator | None = None
        self._banned = BannedTokens.of(params, prompt, ends)
        self._listed: torch.Tensor | None = None
        self._allowed: torch.Tensor | None = None
        self._phase: tuple[bool, bool] | None = None
        self.has_penalties = (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
            or bool(params.logit_bias)
            or self._banned is not None
        )
        self.takes_best = params.temperature == 0 and not self.has_penalties
        self.is_greedy = self.takes_best and params.logprobs is None and mask is None

    @property
    def is_complete(self) -> bool:
        """Whether the reply follows its grammar and nothing can be added to it."""
        return self.mask is not None and self.mask.is_complete

    @property
    def has_no_choice(self) -> bool:
        """Whether all tokens that its request allows are banned, and no grammar decides."""
        return self._banned is not None and self.mask is None and self._banned.leaves_none

    def count(self, token: int) -> None:
        """Count a token as generated."""
        if self.has_penalties:
            self._generated[token] += 1
        if self._banned is not None:
            self._banned.count(token)
        if self.mask is not None:
            self.mask.count(token)

    def penalise(self, scores: torch.Tensor) -> None:
        """Apply penalties and bias to logits in place.

        Args:
            scores: Of shape (vocabulary,), in float32.
        """
        params, device = self.params, scores.device
        is_doubly_bound = self.mask is not None and self._banned is not None
        model_scores = scores.clone() if is_doubly_bound else None
        if params.repetition_penalty != 1:
            ids = self._repeated_ids(device)
            held = scores[ids]
            factor = params.repetition_penalty
            scores[ids] = torch.where(held < 0, held * factor, held / factor)
        if self._generated and (params.presence_penalty or params.frequency_penalty):
            ids = torch.tensor(list(self._generated), device=device)
            counts = torch.tensor(list(self._generated.values()), device=device)
            scores[ids] -= params.presence_penalty + params.frequency_penalty * counts
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=device)
            scores[ids] += torch.tensor(list(params.logit_bias.values()), device=device)
        if self._banned is not None:
            self._ban(self._banned, scores)
        if self.mask is not None:
            self._confine(self.mask, scores, model_scores)

    def _confine(
        self, mask: TokenMask, scores: torch.Tensor, model_scores: torch.Tensor | None
    ) -> None:
        """Leave only what the grammar allows. If all of that is banned, the grammar decides."""
        bias = _bias(mask.allowed(), scores.device)[: len(scores)]
        for each in (scores, model_scores):
            if each is not None:
                each[: len(bias)] += bias
                each[len(bias) :] = -torch.inf
        if model_scores is not None and bool(torch.isneginf(scores).all()):
            scores.copy_(model_scores)

    def _ban(self, banned: BannedTokens, scores: torch.Tensor) -> None:
        """Set the logits of banned tokens; those of the lists are on the device for a phase."""
        if self._listed is None or self._phase != banned.phase:
            self._listed = _in_range(
                torch.tensor(sorted(banned.listed()), dtype=torch.long), scores
            )
            self._phase = banned.phase
        scores.index_fill_(0, self._listed, -torch.inf)
        words = banned.ending_words()
        if words:
            scores.index_fill_(0, _in_range(torch.tensor(words), scores), -torch.inf)
        repeating = banned.repeating()
        if len(repeating):
            scores.index_fill_(0, _in_range(torch.from_numpy(repeating), scores), -torch.inf)
        if banned.allowed:
            self._keep_allowed(banned.allowed, scores)

    def _keep_allowed(self, allowed: Sequence[int], scores: torch.Tensor) -> None:
        """Ban all other tokens. If the model rules out all that are allowed, they are equal."""
        if self._allowed is None:
            self._allowed = _in_range(torch.tensor(allowed, dtype=torch.long), scores)
        kept = scores[self._allowed]
        if self.mask is None and bool(torch.isneginf(kept).all()):
            kept = torch.zeros_like(kept)
        scores.fill_(-torch.inf)
        scores[self._allowed] = kept

    def draw(self, scores: torch.Tensor) -> int:
        """Return a token drawn with the sequence's own generator.

        Args:
            scores: Finite logits of shape (vocabulary,), after penalties and bias.
        """
        params = self.params
        scores = scores / params.temperature
        if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
            return self._pick(torch.softmax(scores, dim=-1))
        probabilities, ids = _most_probable(scores, params.top_k, params.top_p)
        before = probabilities.cumsum(dim=-1) - probabilities
        is_kept = (before < params.top_p) & (probabilities >= params.min_p * probabilities[0])
        is_kept[0] = True  # a `top_p` too small for float32 is 0
        kept = probabilities * is_kept
        return int(ids[self._pick(kept)])

    def _repeated_ids(self, device: torch.device) -> torch.Tensor:
        """The tokens of prompt and reply, each once; they are on the device until one is new."""
        if self._repeated is None or len(self._generated) > self._distinct:
            # Tokens of an encoder have ids below 0 (`encoder_decoder_runner`); they do not count.
            ids = {token for token in self._prompt if token >= 0} | self._generated.keys()
            self._repeated = torch.tensor(sorted(ids), dtype=torch.long, device=device)
            self._distinct = len(self._generated)
        return self._repeated

    def _pick(self, weights: torch.Tensor) -> int:
        if self._generator is None:
            self._generator = torch.Generator(device=weights.device)
            seed = self.params.seed
            self._generator.seed() if seed is None else self._generator.manual_seed(seed)
        return int(torch.multinomial(weights, 1, generator=self._generator))


def log_mass(scores: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Return `logsumexp` over the last dimension, which has one element then.

    The exponential of minus infinity takes ten times as long as others on a CPU, and grammars ban
    most tokens. So it is taken of -80, which is too little to change a sum in float32.

    Args:
        scores: Of shape (..., vocabulary).
        best: The largest of them, of shape (..., 1).
    """
    masses = (scores - best).clamp_(min=-80).exp_()
    return masses.sum(dim=-1, keepdim=True).log_() + best


def best_allowed(logits: torch.Tensor, allowed: AllowedTokens) -> torch.Tensor:
    """Return the most probable token of those that are allowed, of shape ().

    Args:
        logits: Of shape (vocabulary,), in any floating dtype; they are not changed.
        allowed: The tokens.
    """
    few = allowed.few
    if few is not None and len(few) and few[-1] < len(logits):
        ids = torch.from_numpy(few).to(logits.device)
        return ids[logits[ids].max(dim=0).indices]
    bias = _bias(allowed, logits.device)[: len(logits)]
    return (logits[: len(bias)] + bias).max(dim=0).indices


def _bias(allowed: AllowedTokens, device: torch.device) -> torch.Tensor:
    """Return what is added to the logits: 0, or minus infinity for tokens that are not allowed."""
    if device.type == "cpu":
        return torch.from_numpy(allowed.bias())
    bits = torch.from_numpy(allowed.bits).to(device)  # a 32nd of the bytes of the bias
    return expand_bits(bits)[: allowed.size]


def expand_bits(bits: torch.Tensor) -> torch.Tensor:
    """Return what is added to the logits of the eight tokens of each byte, the lowest bit first."""
    flags = (bits.unsqueeze(1) >> torch.arange(8, device=bits.device)) & 1
    return torch.where(flags.bool(), 0.0, -torch.inf).flatten()


def _in_range(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the ids that are in the vocabulary, on the device of the scores."""
    return ids[(ids >= 0) & (ids < len(scores))].to(scores.device)


def _most_probable(
    scores: torch.Tensor, top_k: int, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The probabilities among the `top_k` tokens that hold `top_p`, falling, and their ids."""
    if top_k:
        values, ids = scores.topk(min(top_k, len(scores)))
        return torch.softmax(values, dim=-1), ids
    values, ids = scores.topk(min(FEW, len(scores)))
    probabilities = torch.exp(values - log_mass(scores, values[:1]))
    if float(probabilities.sum()) < top_p:
        values, ids = scores.sort(descending=True)
        probabilities = torch.softmax(values, dim=-1)
    return probabilities, ids
