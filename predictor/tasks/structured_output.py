"""Schemas, regular expressions, choices and grammars of requests, checked before the engine.

They become a grammar in llguidance's form of Lark. Values of JSON are written as Python's `json`
writes them, on one line with a space after each comma and colon. That is what models have seen
most, and no token, which is a whole forward pass, goes to other spaces.
"""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from predictor.cache_scope import current_scope
from predictor.engine.generation.grammar import Grammars, Vocabulary, executor
from predictor.engine.generation.sampling_params import SequenceGenerator
from predictor.errors import RequestError, reason_of
from predictor.settings_limits import GRAMMAR_BYTES
from predictor.tasks.grammar_costs import check_repetitions
from predictor.tasks.request import Grammar


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """The bounds of grammars, as the settings have them.

    Attributes:
        size: Most bytes of the text of one (`max_grammar_size`).
        memory: Most bytes of those that replies follow, compiled (`grammar_memory`); 0 for none.
    """

    size: int = 64 * 1024
    memory: int = GRAMMAR_BYTES


DEFAULT_LIMITS = GrammarLimits()


_HEADER = '%llguidance {"no_forcing": true}\n'
"""A text that is the only one possible may be written in any tokens, as the model prefers."""

_IS_LARK = re.compile(r"^[^\S\n]*(?:%llguidance\b|start\s*:)", re.MULTILINE)
"""What llguidance's `is_lark_syntax` looks for, but in linear time on blank lines."""

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class StructuredOutput:
    """Compiles the grammars of requests to one model, one after the other in a thread of its own.

    The vocabulary is made of the tokenizer at the first such request, and given to the engine.
    """

    def __init__(self, tokenizer: Any, engine: SequenceGenerator, limits: GrammarLimits) -> None:
        """Create it for a model.

        Args:
            tokenizer: The model's tokenizer.
            engine: Runs the model.
            limits: The bounds of grammars.
        """
        self._tokenizer, self._engine, self._limits = tokenizer, engine, limits
        self._turns: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def compile(self, grammar: Grammar, lead: str = "") -> str:
        """Return a grammar in the engine's form.

        No thread that others need is held meanwhile. One grammar of each scope of the prefix cache
        waits for the thread of grammars, so a scope with many takes turns with the others.

        Args:
            grammar: The grammar.
            lead: The rule ``lead`` of what comes before it in the reply; empty for nothing.

        Raises:
            RequestError: It is faulty, too large or too complex, or this model's tokenizer allows
                no grammars.
        """
        self._check_size(grammar)
        loop = asyncio.get_running_loop()
        async with self._turns.setdefault(current_scope(), asyncio.Lock()):
            return await loop.run_in_executor(self._thread, self._compile, grammar, lead)

    def _check_size(self, grammar: Grammar) -> None:
        if not self._limits.memory:
            raise RequestError(
                "This server has no memory for schemas and grammars of replies (grammar_memory)."
            )
        size = len(grammar.text.encode())
        if size > self._limits.size:
            raise RequestError(
                f"The schema or grammar of the reply has {size} bytes; at most {self._limits.size} "
                "are accepted (max_grammar_size)."
            )

    def _compile(self, grammar: Grammar, lead: str) -> str:
        check_repetitions(grammar)
        text = _as_llguidance(grammar, lead)
        self._grammars.matcher(text)
        return text

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return executor("schemas")

    @cached_property
    def _grammars(self) -> Grammars:
        vocabulary = vocabulary_of(self._tokenizer)
        grammars = Grammars(vocabulary, 0, only_checks=True)  # keeps the last one
        self._engine.use_vocabulary(vocabulary, self._limits.memory)
        return grammars


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Return the tokens of a tokenizer as bytes.

    Raises:
        RequestError: The tokenizer is of a kind whose tokens cannot be told as bytes.
    """
    try:
        from llguidance.hf import from_tokenizer  # imports transformers, which imports torch

        whole: LLTokenizer = from_tokenizer(tokenizer, eos_token=tokenizer.eos_token_id or 0)
    # A tokenizer of any other library, or with a decoder of its own.
    except Exception as error:
        reason = reason_of(error).rstrip(".")
        raise RequestError(
            f"This model's tokenizer allows no schema or grammar of the reply: {reason}."
        ) from None
    ids = range(whole.vocab_size)
    return Vocabulary(
        tuple(whole.decode_bytes([token]) for token in ids),
        tuple(token for token in ids if whole.is_special_token(token)),
    )


def _as_llguidance(grammar: Grammar, lead: str) -> str:
    """Return a grammar that begins with the rule `lead`, if that is not empty."""
    body = _body(grammar)
    if not lead:
        return LLMatcher.grammar_from_lark(_HEADER + body)
    body = f"body: %lark {{\n{body}\n}}"
    return LLMatcher.grammar_from_lark(f"{_HEADER}start: lead body\n{lead}\n{body}")


def _body(grammar: Grammar) -> str:
    if grammar.form == "json_schema":
        return f"start: %json {_styled_schema(grammar)}"
    if grammar.form == "regex":
        document = json.loads(LLMatcher.grammar_from_regex(_unanchored(grammar.text)))
        return str(document["grammars"][0]["lark_grammar"])
    if grammar.form == "choice":
        return "start: " + " | ".join(json.dumps(each) for each in json.loads(grammar.text))
    try:
        is_lark = _IS_LARK.search(grammar.text) is not None
        return grammar.text if is_lark else str(gbnf_to_lark(grammar.text))
    # A parser in Python, which raises errors of any kind for what is no grammar.
    except Exception as error:
        reason = reason_of(error).rstrip(".")
        raise RequestError(f"The grammar of the reply cannot be used: {reason}.") from None


def _styled_schema(grammar: Grammar) -> str:
    schema = json.loads(grammar.text)
    if schema is True or schema is False:
        schema = {} if schema else {"enum": []}
    style = {**_JSON_STYLE, "lenient": grammar.is_lenient}
    return json.dumps({**schema, "x-guidance": style})


def _unanchored(regex: str) -> str:
    """Return a regular expression without anchors at its ends, where it always matches whole."""
    body = regex.removesuffix("$")
    is_escaped = (len(body) - len(body.rstrip("\\"))) % 2 == 1
    return (regex if is_escaped else body).removeprefix("^")
