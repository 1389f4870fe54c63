"""Which tokens may follow next in a reply that follows a grammar.

The tokens after the next one are computed in other threads while the model computes its forward
pass, so the model thread finds them ready.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from predictor.engine.generation.grammar import Grammars, Vocabulary, executor
from predictor.engine.generation.grammar_queue import GrammarQueue, Turn
from predictor.errors import GenerationFailed, PredictorError
from predictor.settings_limits import GRAMMAR_BYTES

logger = logging.getLogger(__name__)

_THREADS = 2
"""Threads that compute masks: mostly idle, since a mask takes some 50 µs."""

_FEW = 4096
"""Tokens that are looked at one by one if no more are allowed: a 32nd of a large vocabulary."""

_BIASES: npt.NDArray[np.float32] = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf
).astype(np.float32)
"""For each byte of a bit mask what is added to the logits of its eight tokens."""


@dataclass(frozen=True, slots=True)
class AllowedTokens:
    """The tokens that may come next.

    Attributes:
        bits: A bit for each token id, the lowest of a byte first.
        size: Number of token ids.
        few: The ids, rising; None if they are many.
    """

    bits: npt.NDArray[np.uint8]
    size: int
    few: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, bits: npt.NDArray[np.uint8], size: int) -> AllowedTokens:
        """Return the tokens of a bit mask, which may be longer than the vocabulary."""
        few = None
        if int(np.bitwise_count(bits).sum(dtype=np.int64)) <= _FEW:
            (filled,) = bits.nonzero()
            rows, columns = np.unpackbits(bits[filled, None], axis=1, bitorder="little").nonzero()
            few = filled[rows] * 8 + columns
        return cls(bits, size, few)

    def has(self, token: int) -> bool:
        """Return whether a token is allowed."""
        return 0 <= token < self.size and bool(self.bits[token // 8] >> token % 8 & 1)

    def bias(self) -> npt.NDArray[np.float32]:
        """Return what is added to logits: 0, or minus infinity for tokens that are not allowed.

        With its making this takes a tenth of the time of a selection by booleans.
        """
        return _BIASES.take(self.bits, axis=0).reshape(-1)[: self.size]


class TokenMask:
    """The tokens that a grammar allows, as a reply grows.

    Attributes:
        is_complete: Whether the reply follows the grammar and nothing can be added to it.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        size: int,
        ends: Collection[int],
        pool: ThreadPoolExecutor,
        tokenize: Callable[[bytes], Sequence[int]] = lambda _: (),
    ) -> None:
        """Begin a reply.

        Args:
            matcher: Follows the grammar from its beginning; it is this object's own.
            size: Number of token ids of the vocabulary.
            ends: Tokens that end the reply, wherever the grammar may end.
            pool: Threads that compute the next tokens.
            tokenize: Returns the longest tokens of a text.
        """
        self._tokenize = tokenize
        self.is_complete = False
        self._matcher, self._size = matcher, size
        self._ends = [token for token in ends if token < size]
        self._pool = pool
        self._next: Future[AllowedTokens | None] = pool.submit(self._compute)

    def allowed(self) -> AllowedTokens:
        """Return the tokens that may come next.

        Raises:
            GenerationFailed: The grammar is too complex to follow any further.
        """
        allowed = self._next.result()
        if allowed is None:
            raise GenerationFailed("The reply's schema or grammar is too complex to be followed.")
        return allowed

    def forced(self) -> Sequence[int]:
        """Return tokens of the text that must come next; none if there is a choice.

        The model may write the same text in other tokens.
        """
        ahead = self._copy()
        return () if ahead is None else self._tokenize(ahead.compute_ff_bytes())

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """Return how many first ones of some tokens the grammar allows in this order."""
        ahead = self._copy()
        return 0 if ahead is None or not tokens else int(ahead.validate_tokens(list(tokens)))

    def _copy(self) -> LLMatcher | None:
        """Return a matcher to look ahead with; None if nothing more comes.

        A look ahead may find that a grammar is too complex before the reply gets there.
        """
        is_over = self._next.result() is None or self.is_complete
        return None if is_over else self._matcher.deep_copy()

    def count(self, token: int) -> None:
        """Count a token as generated."""
        if token in self._ends and self._matcher.is_accepting():
            return  # the reply is over
        if self._matcher.consume_token(token):
            self.is_complete = self._matcher.is_stopped()
        if not self.is_complete:
            self._next = self._pool.submit(self._compute)

    def _compute(self) -> AllowedTokens | None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8).copy()
        may_end = self._matcher.is_accepting()
        for token in (*self._ends, self._size):  # the last is llguidance's own, and no real token
            byte, bit = divmod(token, 8)
            bits[byte] &= ~(1 << bit) & 255
            if may_end and token < self._size:
                bits[byte] |= 1 << bit
        if self._matcher.is_error() or not bits.any():
            return None
        return AllowedTokens.of(bits, self._size)


class MaskFactory:
    """Makes the masks of sequences, in threads that begin with the first vocabulary.

    A sequence is cancelled here as long as its grammar is being compiled.
    """

    def __init__(self, call: Callable[[Callable[[], None]], None]) -> None:
        """Begin without a vocabulary.

        Args:
            call: Has an action called in the model thread.
        """
        self._call = call
        self._grammars: Grammars | None = None
        self._queue: GrammarQueue | None = None
        self._waiting: set[int] = set()
        self._lock = threading.Lock()

    def use_vocabulary(self, vocabulary: Vocabulary, most_bytes: int = GRAMMAR_BYTES) -> None:
        """Follow grammars with this vocabulary, in so many bytes of compiled ones."""
        self._grammars = Grammars(vocabulary, most_bytes)
        self._queue = GrammarQueue(self._grammars.memory)
        self._pool = executor("masks", _THREADS)

    def begin(
        self,
        key: int,
        grammar: str | None,
        ends: Collection[int],
        begin: Callable[[TokenMask | None], None],
        fail: Callable[[PredictorError], None],
    ) -> None:
        """Begin a sequence, at once if it has no grammar; do not wait.

        Args:
            key: The key of the sequence.
            grammar: Its grammar, or None.
            ends: Tokens that end the sequence.
            begin: Called with its mask: in another thread, unless it is cancelled before.
            fail: Called in the model thread, in place of `begin`, with the reason why there is no
                mask, and with any error of `begin`.
        """
        if grammar is None:
            begin(None)
            return
        if self._grammars is None or self._queue is None:
            none = GenerationFailed("The engine has no vocabulary to follow a grammar with.")
            self._call(partial(fail, none))
            return
        grammars = self._grammars
        with self._lock:
            self._waiting.add(key)

        def take() -> bool:
            try:
                if key not in self._waiting:
                    return True
                mask = self._mask(grammars, grammar, ends)
                if mask is None:
                    return False
                with self._lock:
                    if key in self._waiting:
                        self._waiting.discard(key)
                        begin(mask)
            except PredictorError as error:
                self._call(partial(fail, error))
            # llguidance may fail in any way; a panic of it is no `Exception`.
            except BaseException:
                logger.exception("A grammar cannot be compiled")
                unknown = GenerationFailed("The reply's schema or grammar cannot be compiled.")
                self._call(partial(fail, unknown))
            return True

        self._queue.put(Turn(grammar, take))

    def cancel(self, key: int) -> None:
        """Forget a sequence whose grammar is being compiled."""
        with self._lock:
            was_waiting = key in self._waiting
            self._waiting.discard(key)
        if was_waiting and self._queue is not None:
            self._queue.look_again()

    def _mask(self, grammars: Grammars, grammar: str, ends: Collection[int]) -> TokenMask | None:
        compiled = grammars.compiled(grammar)
        if compiled is None:
            return None
        matcher = compiled.matcher.deep_copy()
        mask = TokenMask(matcher, grammars.size, ends, self._pool, grammars.longest_tokens)
        grammars.memory.hold(grammar, compiled, mask)
        return mask
