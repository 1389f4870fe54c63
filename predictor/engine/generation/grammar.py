"""Grammars that replies must follow, compiled for a model's vocabulary; llguidance does the work.

A grammar is a text in llguidance's own form, which `predictor.tasks.structured_output` makes of a
JSON schema, a regular expression or a list of choices. It is compiled in the process that answers
requests, which refuses a faulty one, and again in the engine process, which follows it.

llguidance bounds its own work by counts (its "fuel"), and recurses as deeply as rules refer to each
other. So grammars are compiled in threads with a large stack, and their size is bounded before.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from predictor.errors import RequestError, reason_of

_STACK_BYTES = 128 * 1024**2
"""Stack of a thread that compiles. A chain of 8,000 rules, more than 64 KiB can hold, takes less
than half of it; what is not touched takes no memory."""

_TRIAL_TOKENS = 3

_MOST_KEPT = 8
"""Compiled grammars that are kept for the next request with the same one."""

_LIMITS = LLParserLimits(max_lexer_states=10_000, max_grammar_size=100_000, verbose_errors=False)
"""A state takes some 2 KiB, so one grammar takes at most some 20 MB where llguidance's own bound
allows 25 times as much. The schemas of real tools have a few hundred symbols, and as many states.
All replies that follow the same text share its states."""


_PLACE = re.compile(r"^at \d+\(\d+\): (?:failed to compile JSON schema: )?")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model's tokens as bytes.

    Attributes:
        tokens: The bytes of each token id.
        special: The ids of special tokens, which no text contains.
    """

    tokens: tuple[bytes, ...]
    special: tuple[int, ...]


class Grammars:
    """Compiles grammars for one vocabulary, and keeps the latest.

    Attributes:
        size: Number of token ids.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Prepare for a vocabulary, which takes up to a second for 128,000 tokens."""
        self.size = len(vocabulary.tokens)
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(vocabulary)))
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: str) -> LLMatcher:
        """Return what follows a grammar from its beginning. Call it in a thread of `executor`.

        Raises:
            RequestError: The grammar is faulty, or too complex.
        """
        with self._lock:
            compiled = self._kept.get(grammar)
        if compiled is None or _error_of(compiled):  # other replies may have used up its states
            compiled = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
            error = _error_of(compiled)
            if error:
                raise RequestError(_refusal(error))
        with self._lock:
            self._kept[grammar] = compiled
            self._kept.move_to_end(grammar)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
            return compiled.deep_copy()

    def longest_tokens(self, text: bytes) -> list[int]:
        """Return the tokens of a text, each the longest that continues it.

        That is how most tokenizers write short texts. Bytes after the last whole character are
        left out.
        """
        tokens: list[int] = self._tokenizer.greedy_tokenize(text.decode(errors="ignore"))
        return tokens


class _Tokens:
    """A vocabulary as llguidance takes one, with an end token of its own behind the real tokens."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = len(vocabulary.tokens)
        self.tokens: Sequence[bytes] = (*vocabulary.tokens, b"<end of grammar>")
        self.special_token_ids = (*vocabulary.special, self.eos_token_id)

    def __call__(self, _text: str | bytes) -> list[int]:
        """Return no tokens: no grammar here forces the tokens of a text (``no_forcing``)."""
        return []


def _error_of(compiled: LLMatcher) -> str:
    """Return the error of a grammar in its first tokens; nothing if it has none.

    Some grammars turn out to be too complex at the first or second one.
    """
    trial = compiled.deep_copy()
    _follow(trial)
    return str(trial.get_error()) if trial.is_error() else ""


def _follow(matcher: LLMatcher) -> None:
    """Take a few tokens."""
    for _ in range(_TRIAL_TOKENS):
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        if matcher.is_error() or matcher.is_stopped() or not len(allowed):
            return
        matcher.consume_token(int(allowed[0]))


def executor(name: str, threads: int = 1) -> ThreadPoolExecutor:
    """Return threads whose stack suffices to compile any grammar of the allowed size.

    Their priority is that of other threads: with a lower one they would keep the interpreter's lock
    for as long as a busy machine leaves them waiting.
    """
    pool = ThreadPoolExecutor(threads, name)
    before = threading.stack_size(_STACK_BYTES)
    try:  # the threads start with the first calls
        gate = threading.Barrier(threads + 1)
        for _ in range(threads):
            pool.submit(gate.wait)
        gate.wait()
    finally:
        threading.stack_size(before)
    return pool


def _refusal(message: str) -> str:
    """Return llguidance's message as a sentence, without the lines that show the grammar."""
    first, *others = message.splitlines()
    if first.endswith(":"):
        errors = (line.removeprefix("error: ") for line in others if line.startswith("error: "))
        first = f"{first} {next(errors, '')}"
    first = _PLACE.sub("", first)  # the form is one of our making, with lines of its own
    reason = reason_of(ValueError(first)).rstrip(".: ")
    return f"The schema or grammar of the reply cannot be used: {reason}."
