"""Grammars that replies must follow, compiled for a model's vocabulary; llguidance does the work.

A grammar is a text in llguidance's own form, which `predictor.tasks.structured_output` makes of a
JSON schema, a regular expression or a list of choices. It is compiled in the process that answers
requests, which refuses a faulty one, and again in the engine process, which follows it.

llguidance bounds its own work by counts (its "fuel"), and recurses as deeply as rules refer to each
other. So grammars are compiled in threads with a large stack, and their size is bounded before.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from predictor.engine.generation.grammar_memory import (
    Compiled,
    GrammarMemory,
    states_of,
)
from predictor.errors import GenerationFailed, RequestError, reason_of
from predictor.settings_limits import GRAMMAR_BYTES

_STACK_BYTES = 128 * 1024**2
"""Stack of a thread that compiles. A chain of 8,000 rules, more than 64 KiB can hold, takes less
than half of it; what is not touched takes no memory."""

_TRIAL_TOKENS = 3

_MOST_SYMBOLS = 100_000
"""Symbols of a grammar; the schemas of real tools have a few hundred."""

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
    """Compiles grammars for one vocabulary, in one thread with a large stack; keeps the latest.

    Attributes:
        size: Number of token ids.
        memory: The compiled grammars.
    """

    def __init__(
        self, vocabulary: Vocabulary, most_bytes: int = GRAMMAR_BYTES, *, only_checks: bool = False
    ) -> None:
        """Prepare for a vocabulary, which takes up to a second for 128,000 tokens.

        Args:
            vocabulary: The model's tokens.
            most_bytes: Most bytes of compiled grammars.
            only_checks: Whether no reply follows them. Then a token takes 150 bytes, and else 500
                with what makes masks quick.
        """
        self.size = len(vocabulary.tokens)
        tokens = TokenizerWrapper(_Tokens(vocabulary))
        self._tokenizer = LLTokenizer(tokens, slices=[] if only_checks else None)
        self.memory = GrammarMemory(most_bytes)

    def matcher(self, grammar: str) -> LLMatcher:
        """Return what follows a grammar from its beginning; raises the errors of `compiled`.

        Raises:
            GenerationFailed: There is no room for it.
        """
        compiled = self.compiled(grammar)
        if compiled is None:
            raise GenerationFailed("There is no memory for the schema or grammar of the reply.")
        return compiled.matcher.deep_copy()

    def compiled(self, grammar: str) -> Compiled | None:
        """Return a compiled grammar; None if replies follow so many others that it has no room.

        Raises:
            RequestError: The grammar is faulty, or too complex.
        """
        kept = self.memory.get(grammar)
        if kept is not None and not _error_of(kept.matcher):
            return kept
        if not self.memory.make_room(grammar):  # other replies may have used up its states
            return None
        limits = LLParserLimits(
            max_lexer_states=states_of(grammar),
            max_grammar_size=_MOST_SYMBOLS,
            verbose_errors=False,
        )
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        error = _error_of(matcher)
        if error:
            raise RequestError(_refusal(error))
        return self.memory.add(grammar, matcher)

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
    with _large_stacks():  # the threads start with the first calls
        gate = threading.Barrier(threads + 1)
        for _ in range(threads):
            pool.submit(gate.wait)
        gate.wait()
    return pool


def start_thread(run: Callable[[], None], name: str) -> None:
    """Start a thread with such a stack, which ends with the process."""
    with _large_stacks():
        threading.Thread(target=run, name=name, daemon=True).start()


@contextlib.contextmanager
def _large_stacks() -> Iterator[None]:
    before = threading.stack_size(_STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(before)


def _refusal(message: str) -> str:
    """Return llguidance's message as a sentence, without the lines that show the grammar."""
    first, *others = message.splitlines()
    if first.endswith(":"):
        errors = (line.removeprefix("error: ") for line in others if line.startswith("error: "))
        first = f"{first} {next(errors, '')}"
    first = _PLACE.sub("", first)  # the form is one of our making, with lines of its own
    reason = reason_of(ValueError(first)).rstrip(".: ")
    return f"The schema or grammar of the reply cannot be used: {reason}."
