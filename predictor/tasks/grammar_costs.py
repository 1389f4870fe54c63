"""Bounds of what a grammar costs to compile, counted before anything compiles it.

A chain of so many optional or repeated parts takes llguidance 1.9 a time that grows with the square
of its length, and is refused in the end: 20,000 times ``a?`` take 7 s. So do the rules of a chain
its converter of GBNF: 3,000 take 3.5 s. Within these bounds each takes less than half a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from predictor.errors import RequestError
from predictor.tasks.request import Grammar

MAX_REPETITIONS = 2000
"""Most quantifiers in all regular expressions of a reply, or in its grammar."""

MAX_GBNF_RULES = 1000
"""Most rules of a grammar in GBNF's form."""

_QUANTIFIER = re.compile(r"[?*+{]")


def check_repetitions(grammar: Grammar) -> None:
    """Refuse a grammar that would take long to compile.

    Raises:
        RequestError: It has too many quantifiers or rules.
    """
    if grammar.form == "choice":
        return
    texts = [grammar.text]
    if grammar.form == "json_schema":
        texts = list(_patterns(json.loads(grammar.text)))
    count = sum(len(_QUANTIFIER.findall(text)) for text in texts)
    if count > MAX_REPETITIONS:
        raise RequestError(
            f"The form of the reply has {count} parts that are optional or repeated; at most "
            f"{MAX_REPETITIONS} are accepted."
        )
    rules = grammar.text.count("::=") if grammar.form == "grammar" else 0
    if rules > MAX_GBNF_RULES:
        raise RequestError(
            f"The grammar of the reply has {rules} rules; at most {MAX_GBNF_RULES} are accepted."
        )


def _patterns(schema: object) -> Iterator[str]:
    """Yield the regular expressions of a JSON schema."""
    left = [schema]
    while left:
        each = left.pop()
        if isinstance(each, list):
            left += each
        elif isinstance(each, dict):
            left += each.values()
            pattern, properties = each.get("pattern"), each.get("patternProperties")
            if isinstance(pattern, str):
                yield pattern
            if isinstance(properties, dict):
                yield from properties
