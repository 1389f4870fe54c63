"""Which tokens may not follow next, by the generation config or by a request.

They are what transformers' processors of these names forbid (``generation/logits_process.py``):
`MinNewTokensLength`, `NoRepeatNGram`, `SuppressTokens`, `SuppressTokensAtBegin` and `NoBadWords`;
and all but those that a request allows.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

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
        # Four bytes for each token of a prompt, which may have very many.
        self._sequence = array("i")
        if params.no_repeat_ngram_size:
            self._sequence.extend(token for token in prompt if token >= 0)
        self._words: dict[int | None, list[tuple[int, ...]]] = {}  # by the token before the last
        for word in params.bad_words:
            self._words.setdefault(word[-2] if len(word) > 1 else None, []).append(word)
        longest = max(map(len, params.bad_words), default=1)
        self._last: deque[int] = deque(maxlen=longest - 1)

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
            params.allowed_tokens,
            params.bad_words,
        )
        return cls(params, prompt, ends) if any(bans) else None

    def count(self, token: int) -> None:
        """Count a token as generated."""
        self._count += 1
        self._last.append(token)
        if self._params.no_repeat_ngram_size:
            self._sequence.append(token)

    @property
    def phase(self) -> tuple[bool, bool]:
        """Whether the next token is the first, and whether the sequence may not end with it."""
        return not self._count, self._count < self._params.min_new_tokens

    def listed(self) -> set[int]:
        """Return the tokens that may not be generated in this phase."""
        is_first, is_short = self.phase
        banned = set(self._params.suppress_tokens)
        if is_first:
            banned.update(self._params.begin_suppress_tokens)
        if is_short:
            banned.update(self._ends)
        return banned

    @property
    def allowed(self) -> tuple[int, ...]:
        """The only tokens that may be generated; empty for all that are not banned."""
        return self._params.allowed_tokens

    @property
    def leaves_none(self) -> bool:
        """Whether all tokens that are allowed are banned, too."""
        if not self._params.allowed_tokens:
            return False
        banned = {*self.listed(), *self.ending_words(), *self.repeating().tolist()}
        return banned.issuperset(self._params.allowed_tokens)

    def ending_words(self) -> list[int]:
        """Return the tokens that would complete a word that may not be generated."""
        last = tuple(self._last)
        words = self._words.get(None, []) + (self._words.get(last[-1], []) if last else [])
        return [
            word[-1]
            for word in words
            if len(word) <= len(last) + 1 and last[len(last) - len(word) + 1 :] == word[:-1]
        ]

    def repeating(self) -> npt.NDArray[np.int64]:
        """Return the tokens that would end an n-gram of the sequence again, some more than once."""
        size = self._params.no_repeat_ngram_size
        if not 0 < size <= len(self._sequence):
            return np.empty(0, dtype=np.int64)
        tokens = np.frombuffer(self._sequence, dtype=np.intc)
        if size == 1:
            return tokens.astype(np.int64)
        # The last of the n - 1 tokens first: few positions remain for the others.
        starts = np.flatnonzero(tokens[size - 2 : -1] == tokens[-1])
        for offset in range(size - 2):
            starts = starts[tokens[starts + offset] == tokens[len(tokens) - size + 1 + offset]]
        return tokens[starts + size - 1].astype(np.int64)
