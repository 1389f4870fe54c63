"""What forms of a reply may cost to compile, and that the bounds hold it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any
from unittest.mock import Mock

import pytest

from predictor.errors import RequestError
from predictor.tasks.grammar_costs import MAX_GBNF_RULES, MAX_REPETITIONS, check_repetitions
from predictor.tasks.request import Grammar
from predictor.tasks.structured_output import GrammarLimits, StructuredOutput
from tests.checkpoints import byte_tokenizer

_SECONDS = 3.0
"""Of processor time; each takes less than half a second, alone on a processor."""


def schema(value: object) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def rules(count: int) -> Grammar:
    chain = "".join(f'r{n} ::= "a" r{n + 1}\n' for n in range(count - 2))
    return Grammar("grammar", f'root ::= r0\n{chain}r{count - 2} ::= "a"\n')


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", ".?" * MAX_REPETITIONS),
        Grammar("regex", "(a|b)?" * MAX_REPETITIONS),
        Grammar("grammar", "start: " + '"a"* ' * MAX_REPETITIONS),
        schema({"type": "string", "pattern": "^" + ".?" * MAX_REPETITIONS}),
        rules(MAX_GBNF_RULES),
    ],
    ids=["dots", "groups", "Lark", "pattern", "GBNF"],
)
def test_the_most_that_is_accepted_is_compiled_or_refused_soon(grammar: Grammar) -> None:
    engine: Any = Mock(use_vocabulary=Mock())
    structured = StructuredOutput(byte_tokenizer(), engine, GrammarLimits())
    asyncio.run(structured.compile(Grammar("regex", "a")))  # makes the vocabulary
    check_repetitions(grammar)
    began = time.process_time()
    with contextlib.suppress(RequestError):
        asyncio.run(structured.compile(grammar))
    assert time.process_time() - began < _SECONDS


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "a{2}" * (MAX_REPETITIONS + 1)),
        schema({"anyOf": [{"pattern": "a+" * MAX_REPETITIONS}, {"pattern": "b*"}]}),
        rules(MAX_GBNF_RULES + 1),
    ],
)
def test_more_is_refused(grammar: Grammar) -> None:
    with pytest.raises(RequestError, match="at most"):
        check_repetitions(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        schema({"properties": {"pattern": {"type": "string"}}, "enum": ["?" * 5000]}),
        schema({"description": "a+" * 5000, "pattern": 5}),
        schema(True),
        Grammar("choice", json.dumps(["a?" * 5000])),
    ],
)
def test_texts_that_are_no_expressions_do_not_count(grammar: Grammar) -> None:
    check_repetitions(grammar)
