"""Which tokens may not follow next: those of a generation config that are logits of minus infinity.

They are what transformers' processors of these names forbid (``generation/logits_process.py``):
`MinNewTokensLength`, `NoRepeatNGram`, `SuppressTokens` and `SuppressTokensAtBegin`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from predictor.engine.generation.sampling_params import SamplingParams


class BannedTokens:
    """The banned tokens of one sequence, as it grows."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], ends: Collection[int]
    ) -> None:
        """Begin a sequence.

        Args:
            params: The sampling parameters.
            prompt: Tokens of the prompt; those below 0 are a source's and do not count.
            ends: Tokens that end the sequence.
        """
        self._params, self._ends, self._count = params, ends, 0
        self._tail: tuple[int, ...] = ()
        self._followers: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        if params.no_repeat_ngram_size:
            for token in prompt:
                if token >= 0:
                    self._follow(token)

    @classmethod
    def of(
        cls, params: SamplingParams, prompt: Sequence[int], ends: Collection[int]
    ) -> BannedTokens | None:
        """Return the banned tokens of a sequence; None if its parameters ban none."""
        bans = (
            params.min_new_tokens and ends,
            params.no_repeat_ngram_size,
            params.suppress_tokens,
            params.begin_suppress_tokens,
        )
        return cls(params, prompt, ends) if any(bans) else None

    def count(self, token: int) -> None:
        """Count a token as generated."""
        self._count += 1
        if self._params.no_repeat_ngram_size:
            self._follow(token)

    def next(self) -> set[int]:
        """Return the tokens that may not be generated next."""
        params, banned = self._params, set(self._params.suppress_tokens)
        if not self._count:
            banned.update(params.begin_suppress_tokens)
        if self._count < params.min_new_tokens:
            banned.update(self._ends)
        if params.no_repeat_ngram_size and len(self._tail) == params.no_repeat_ngram_size - 1:
            banned |= self._followers.get(self._tail, set())
        return banned

    def _follow(self, token: int) -> None:
        before = self._params.no_repeat_ngram_size - 1
        if len(self._tail) == before:
            self._followers[self._tail].add(token)
        self._tail = (*self._tail, token)[1:] if len(self._tail) == before else (*self._tail, token)
