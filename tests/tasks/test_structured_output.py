"""Replies that must follow a schema, an expression or a grammar, by the demo model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predictor.cache_scope import within_scope
from predictor.errors import GenerationFailed, RequestError
from predictor.tasks.answers import Completion
from predictor.tasks.request import GenerationParameters, GenerationRequest, Grammar, Prompt
from predictor.tasks.structured_output import GrammarLimits, StructuredOutput
from predictor.tasks.task import prepare
from tests.checkpoints import byte_tokenizer
from tests.serving import Up, bring_up

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    demo = bring_up(DEMO)
    yield demo
    demo.task.engine.stop()


def replies(up: Up, *grammars: Grammar | None, **parameters: Any) -> tuple[Completion, ...]:
    """Returns the replies of one request with a prompt for each grammar."""
    given: dict[str, Any] = {"max_new_tokens": 48, "temperature": 1.0, "seed": 3, **parameters}
    prompts = tuple(
        Prompt("Once upon a time", GenerationParameters(**given, grammar=grammar))
        for grammar in grammars
    )

    async def complete() -> tuple[Completion, ...]:
        prepared: Any = await prepare(up.task, GenerationRequest(prompts))
        completions: tuple[Completion, ...] = await prepared.complete()
        return completions

    return asyncio.run(complete())


def reply(up: Up, form: Any, text: str, **parameters: Any) -> Completion:
    (completion,) = replies(up, Grammar(form, text), **parameters)
    return completion


def schema(value: object) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def test_blank_lines_of_a_grammar_are_read_once() -> None:
    engine = Mock(use_vocabulary=Mock())
    structured = StructuredOutput(byte_tokenizer(), engine, GrammarLimits(2**20))
    lines = "\n" * 500_000  # a scan to the end from each takes an hour
    asyncio.run(structured.compile(Grammar("grammar", f'{lines}root ::= "a"')))
    asyncio.run(structured.compile(Grammar("grammar", f'{lines}start: "a"')))


def test_a_scope_with_many_grammars_takes_turns_with_others() -> None:
    structured = StructuredOutput(byte_tokenizer(), Mock(use_vocabulary=Mock()), GrammarLimits())
    order: list[str] = []

    async def follow(caller: str, number: int) -> None:
        with within_scope(caller.encode()):
            await structured.compile(Grammar("regex", f"{caller}{number}"))
        order.append(caller)

    async def compile_all() -> None:
        await asyncio.gather(*(follow(*each) for each in [*(("a", n) for n in range(9)), ("b", 0)]))

    asyncio.run(compile_all())
    assert order.index("b") <= 2


# --- what a reply follows ---


@pytest.mark.parametrize(
    ("form", "text", "pattern"),
    [
        ("regex", r"[a-c]{3}-\d{2}", r"[a-c]{3}-\d{2}"),
        ("regex", r"^(yes|no)$", r"yes|no"),
        ("regex", r"costs \$", r"costs \$"),
        ("choice", '["red", "a \\"quoted\\" word", "gr\\u00fcn"]', r'red|a "quoted" word|grün'),
        ("grammar", 'start: "a" ("b" | "c")~2 "d"', r"a[bc]{2}d"),
        ("grammar", 'root ::= "x" [0-9] "y"', r"x[0-9]y"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_reply_follows_its_form(
    up: Up, form: Any, text: str, pattern: str, temperature: float
) -> None:
    completion = reply(up, form, text, temperature=temperature)
    assert re.fullmatch(pattern, completion.text), completion.text
    assert completion.finish_reason == "stop"


def test_json_is_written_on_one_line(up: Up) -> None:
    completion = reply(up, "json_schema", json.dumps(PERSON), max_new_tokens=64)
    value = json.loads(completion.text)
    jsonschema.validate(value, PERSON)
    assert completion.text == json.dumps(value, ensure_ascii="\\u" in completion.text)


def test_a_reply_that_is_cut_says_so(up: Up) -> None:
    completion = reply(up, "regex", "a{40}", max_new_tokens=5)
    assert completion.finish_reason == "length"
    assert completion.completion_tokens == 5


def test_no_token_is_computed_after_the_last_that_a_grammar_allows(up: Up) -> None:
    assert reply(up, "choice", '["e"]').completion_tokens == 1


def test_banned_tokens_give_way_where_a_grammar_allows_no_other(up: Up) -> None:
    completion = reply(up, "regex", "(ab){8}", logit_bias={}, repetition_penalty=100.0)
    assert completion.text == "ab" * 8
    assert reply(up, "choice", '["yes"]', stop=("no",)).text == "yes"


def schemas() -> st.SearchStrategy[Any]:
    """Small schemas that an untrained eye would write."""
    leaves = st.one_of(
        st.just({"type": "string", "maxLength": 5}),
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.integers(-20, 20).map(
            lambda low: {"type": "integer", "minimum": low, "maximum": low + 30}
        ),
        st.just({"type": "number", "minimum": 0, "maximum": 9}),
        st.lists(st.sampled_from(["a", "b c", 'q"', "ü", 1, True, None]), min_size=1).map(
            lambda values: {"enum": values}
        ),
        st.sampled_from(["date", "uuid", "ipv4"]).map(
            lambda form: {"type": "string", "format": form}
        ),
    )
    return st.recursive(leaves, _nested, max_leaves=4)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.builds(
        lambda items, least: {
            "type": "array",
            "items": items,
            "minItems": least,
            "maxItems": least + 1,
        },
        inner,
        st.integers(0, 2),
    )
    names = st.sampled_from(["a", "b", "name", "a b", "ü"])
    objects = st.dictionaries(names, inner, max_size=3).map(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": sorted(properties)[:2],
            "additionalProperties": False,
        }
    )
    return st.one_of(arrays, objects, st.lists(inner, min_size=1, max_size=2).map(_any_of))


def _any_of(choices: list[Any]) -> dict[str, Any]:
    return {"anyOf": choices}


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(forms=st.lists(schemas(), min_size=6, max_size=8), seed=st.integers(0, 2**31))
def test_each_reply_is_valid_json_by_its_schema_or_cut(up: Up, forms: list[Any], seed: int) -> None:
    completions = replies(up, *map(schema, forms), seed=seed, temperature=1.5)
    for form, completion in zip(forms, completions, strict=True):
        if completion.finish_reason == "stop":
            jsonschema.validate(json.loads(completion.text), form)


# --- replies by random schemas ---

_BATCH = 8
_DEPTH = 3
_BATCHES = range(125)
_QUICK = 3
"""Of these batches of schemas, which run without ``--full-grid``."""


def random_schema(random: Random, depth: int = _DEPTH) -> dict[str, Any]:
    """A schema with the keywords that structured output is used with."""
    if depth == _DEPTH and random.random() < 0.2:
        return _recursive(random, depth - 1)
    if depth and random.random() < 0.55:
        return random.choice((_object, _array, _choices))(random, depth - 1)
    low = random.randrange(-1000, 1000)
    leaves: list[dict[str, Any]] = [
        {"type": "string", "maxLength": random.randrange(1, 9)},
        {"type": "string", "minLength": 1, "maxLength": random.randrange(2, 6)},
        {
            "type": "string",
            "pattern": random.choice(("^[a-c]{2,4}$", r"^\d{3}-[xyz]$", "^(on|off)$")),
        },
        {"type": "string", "format": random.choice(("date", "uuid", "ipv4"))},
        {"type": "integer", "minimum": low, "maximum": low + random.randrange(500)},
        {"type": "integer", "exclusiveMinimum": low, "multipleOf": random.choice((1, 5, 10))},
        {"type": "number", "minimum": 0, "maximum": random.randrange(1, 100)},
        {"type": random.choice(("boolean", "null"))},
        {"type": ["string", "null"], "maxLength": 4},
        {"const": random.choice(("a b", 'q"', "ü", 7, -0.5, None, [1, "x"], {"k": True}))},
        {"enum": random.sample(["a", "bc", 'd"e', "\n", 1, 2.5, True, None], 3)},
    ]
    return random.choice(leaves)


def _object(random: Random, depth: int) -> dict[str, Any]:
    names = random.sample(["id", "name", "a b", 'q"', "ü", "tags", "$ref", "x-y"], 3)
    properties = {name: random_schema(random, depth) for name in names[: random.randrange(1, 4)]}
    required = [name for name in properties if random.random() < 0.6]
    extra = random.choice((False, {"type": "boolean"}))
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": extra,
    }


def _array(random: Random, depth: int) -> dict[str, Any]:
    least = random.randrange(3)
    if random.random() < 0.3:
        items = [random_schema(random, depth) for _ in range(2)]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": 2}
    bounds = {"minItems": least, "maxItems": least + random.randrange(2)}
    return {"type": "array", "items": random_schema(random, depth), **bounds}


def _choices(random: Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(random, depth) for _ in range(random.randrange(1, 4))]}


def _recursive(random: Random, depth: int) -> dict[str, Any]:
    """A list of values, linked by references; references count from the root."""
    node = {
        "type": "object",
        "properties": {
            "value": random_schema(random, depth - 1),
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
        },
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}


@pytest.mark.parametrize(
    "batch",
    [pytest.param(n, marks=() if n < _QUICK else pytest.mark.full_grid) for n in _BATCHES],
)
def test_replies_by_random_schemas_are_valid_or_cut(up: Up, batch: int) -> None:
    random = Random(batch)
    forms = [random_schema(random) for _ in range(_BATCH)]
    completions = replies(
        up,
        *map(schema, forms),
        seed=batch,
        temperature=random.choice((0, 1, 1.5)),
        max_new_tokens=80,
    )
    ends = [completion.finish_reason for completion in completions]
    for form, completion, end in zip(forms, completions, ends, strict=True):
        assert end in ("stop", "length")
        if end == "stop":
            jsonschema.validate(
                json.loads(completion.text),
                form,
                cls=jsonschema.Draft202012Validator,
                format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
            )
    assert "stop" in ends


def test_the_same_replies_come_in_any_company(up: Up) -> None:
    """Seeds, rows without a grammar beside others, and replies computed again after preemption."""
    forms = [schema(PERSON), None, Grammar("regex", "[a-z ]{12}"), None, schema(PERSON)]
    together = replies(up, *forms, max_new_tokens=20)
    apart = [replies(up, form, max_new_tokens=20)[0] for form in forms]
    assert [each.text for each in together] == [each.text for each in apart]


# --- what is refused ---


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (schema({"type": "strin"}), "strin"),
        (schema({"type": "object", "not": {"required": ["a"]}}), "not"),
        (schema({"enum": []}), "Unsatisfiable"),
        (schema(False), "Unsatisfiable"),
        (schema({"$ref": "#/$defs/nowhere"}), "nowhere"),
        (schema({"$ref": "https://example.org/schema.json"}), "example.org"),
        (Grammar("regex", "a(?=b)"), "look-around"),
        (Grammar("regex", "(a"), "regex"),
        (Grammar("grammar", "start: nowhere"), "nowhere"),
        (Grammar("grammar", "no grammar at all"), "cannot be used"),
        (Grammar("regex", "a" * 70_000), "max_grammar_size"),
        (Grammar("regex", "a?" * 30_000), "30000 parts that are optional or repeated"),
        (Grammar("grammar", "start: " + '"a"* ' * 9000), "9000 parts that are optional"),
        (schema({"type": "string", "pattern": "a*" * 9000}), "9000 parts that are optional"),
        (
            schema({"type": "object", "patternProperties": {f"^{'.?' * 5000}$": {}}}),
            "5000 parts that are optional",
        ),
        (
            Grammar("grammar", "".join(f'r{n} ::= "a" r{n + 1}\n' for n in range(3000))),
            "3000 rules; at most 1000",
        ),
        (
            schema({"type": "object", "properties": {f"property {n}": {} for n in range(1500)}}),
            "max is 2000",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_in_a_sentence(
    up: Up, grammar: Grammar, words: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(words)) as refused:
        replies(up, grammar)
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


def _nest(depth: int) -> object:
    value: object = {"type": "integer"}
    for _ in range(depth):
        value = {"type": "array", "items": value}
    return value


def _chain(length: int) -> object:
    links = {
        f"a{n}": {"type": "array", "items": {"$ref": f"#/$defs/a{n + 1}"}} for n in range(length)
    }
    return {"$ref": "#/$defs/a0", "$defs": links | {f"a{length}": {"type": "null"}}}


RULES = "".join(f"r{n}: r{n + 1} r{n + 1}\n" for n in range(3000))

EXPLOSIVE = {
    "deep": schema(_nest(200)),
    "chain of references": schema(_chain(1000)),
    "reference to itself": schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "product of choices": schema(
        {
            "allOf": [
                {"anyOf": [{"required": [f"p{row}_{n}"]} for n in range(8)]} for row in range(8)
            ]
        }
    ),
    "many properties": schema({"properties": {f"property {n}": {} for n in range(600)}}),
    "many items": schema({"type": "array", "minItems": 10**6, "items": {"type": "integer"}}),
    "long string": schema({"type": "string", "minLength": 10**5}),
    "multiples": schema({"type": "integer", "multipleOf": 999_983, "minimum": 3}),
    "repetition": Grammar("regex", "(a{1,1000}){1,1000}"),
    "parentheses": Grammar("regex", "(" * 3000 + "a" + ")" * 3000),
    "expression with many states": Grammar("regex", "(a|b)*a(a|b){60}"),
    "chain of rules": Grammar("grammar", f'start: r0\n{RULES}r3000: "a"'),
    "rule of itself": Grammar("grammar", 'start: start start start | "a" | ""'),
    "nested groups": Grammar("grammar", "start: " + "(" * 9000 + '"a"' + ")" * 9000),
    "nested groups of GBNF": Grammar("grammar", "root ::= " + "(" * 3000 + '"a"' + ")" * 3000),
    "many options": Grammar("grammar", "start: " + '"a"? ' * 1500),
}


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_an_explosive_grammar_is_followed_or_refused_and_harms_nobody(up: Up, name: str) -> None:
    with contextlib.suppress(RequestError, GenerationFailed):
        replies(up, EXPLOSIVE[name], max_new_tokens=2)
    assert reply(up, "choice", '["alive"]').text == "alive"
