"""The memory of compiled grammars, counted in bytes."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from llguidance import LLMatcher

from predictor.engine.generation.grammar import Grammars, Vocabulary
from predictor.engine.generation.grammar_memory import (
    GrammarMemory,
    largest_weight,
    states_of,
    weight_of,
)
from predictor.engine.generation.grammar_queue import GrammarQueue, Turn
from predictor.engine.generation.token_mask import MaskFactory, TokenMask

HEADER = '%llguidance {"no_forcing": true}\n'
TOKENS = Vocabulary((b"<s>", b"</s>", *(bytes([byte]) for byte in range(256))), (0, 1))


class Reply:
    """What follows a grammar, as far as the memory knows."""


def choice(number: int) -> str:
    return LLMatcher.grammar_from_lark(f'{HEADER}start: "answer {"abcdef"[number]}"')


def test_a_grammar_counts_with_its_text_and_the_states_that_it_may_need() -> None:
    assert states_of('{"description": "since 2024", "type": "integer"}') == 500
    assert states_of(r"{\"description\": \"since 2024\", \"type\": \"integer\"}") == 500
    assert states_of('{"const": "' + "a" * 700 + '"}') == 500 + 700
    assert states_of(r"{\"maxLength\": 300}") == 500 + 9 + 6 + 8 * 300
    assert states_of("/a{1,300}/") == 500 + 10 + 8 * 301
    assert states_of('"a"~1..300') == 500 + 8 + 8 * 301
    assert states_of(r"/\w{1,30}/") == states_of(r"/\\p{1,30}/") - 1 == 500 + 10 + 32 * 31
    assert states_of("/[à-ÿ]{30}/") == 500 + 13 + 32 * 30
    assert states_of("/(-a{4}){3}/") == 3 * (500 + 12 + 8 * 7)
    assert states_of("A{3}") == states_of("A~3") + 3 == 3 * (500 + 4 + 8 * 3)
    assert states_of('{"multipleOf": 30}') == 500 + 10 + 5 + 8 * 30
    assert states_of('{"maxLength": 99999999999999999}') == 10_000
    assert weight_of("~") == 500 * 2048 + 224
    assert weight_of("{9999}" + "x" * 81_000) < largest_weight(64 * 1024)


FOLLOWED = {
    "classes of Unicode": (r"/[\w ]{1,200}/", "текст Ω中é " * 20),
    "long classes": ("/[a-zБ-Яб-яёЁβ-ω一-龥ぁ-んァ-ヶ가-힣]{1,300}/", "aяЁ中ぁヶ가β" * 37),
    "digits of Unicode": (r"/\d{1,300}/", "٣१5᠑𐒠" * 60),
    "counted groups": ("/([a-z]{1,50} ){1,50}/", ("a" * 50 + " ") * 50),
    "counted terminals": ("W~1..50\nW: /[a-z]{1,50} /", ("a" * 50 + " ") * 50),
    "a schema's pattern": (
        r'%json {"type": "string", "pattern": "^\\p{L}{1,300}$"}',
        '"' + "中文字符模型" * 50 + '"',
    ),
    "a long constant": (f'"{"once upon a time " * 50}"', "once upon a time " * 50),
    "many names": (
        "%json "
        + json.dumps(
            {
                "type": "object",
                "properties": {f"name of number {n}": {"const": n} for n in range(60)},
                "required": [f"name of number {n}" for n in range(60)],
            }
        ),
        json.dumps({f"name of number {n}": n for n in range(60)}),
    ),
}


@pytest.mark.parametrize(("body", "reply"), FOLLOWED.values(), ids=FOLLOWED)
def test_a_reply_is_followed_to_its_end(body: str, reply: str) -> None:
    start = "start: T\nT: " if "\nW" in body else "start: "
    text = LLMatcher.grammar_from_lark(HEADER + start + body)
    matcher = Grammars(TOKENS).matcher(text)
    for byte in reply.encode():
        matcher.compute_bitmask()
        assert matcher.consume_token(byte + 2), matcher.get_error()
    assert matcher.is_accepting()


def test_grammars_that_no_reply_follows_are_dropped_for_others_oldest_first() -> None:
    weight = weight_of(choice(0))
    grammars = Grammars(TOKENS, 2 * weight)
    first, second = (grammars.compiled(choice(number)) for number in (0, 1))
    assert first is not None
    assert second is not None
    assert grammars.compiled(choice(0)) is first
    reply = Reply()
    grammars.memory.hold(choice(0), first, reply)
    grammars.compiled(choice(2))
    assert grammars.memory.get(choice(0)) is first
    assert grammars.memory.get(choice(1)) is None
    assert grammars.memory.used == 2 * weight
    assert second.users == 0


def test_a_grammar_has_no_room_until_replies_have_ended_that_follow_others() -> None:
    memory = GrammarMemory(2 * weight_of("a"))
    ended: list[str] = []
    memory.on_leave = lambda: ended.append("one")
    replies = {text: Reply() for text in "ab"}
    for text, reply in replies.items():
        assert memory.make_room(text)
        memory.hold(text, memory.add(text, LLMatcher), reply)  # type: ignore[arg-type]
    assert not memory.make_room("c")
    del replies["a"], reply
    assert ended == ["one"]
    assert memory.make_room("c")
    assert (memory.get("a"), memory.used) == (None, weight_of("b"))


def test_a_grammar_beyond_the_limit_is_held_alone() -> None:
    memory = GrammarMemory(0)
    for text in ("first", "second"):
        memory.make_room(text)
        memory.add(text, LLMatcher)  # type: ignore[arg-type]
        assert memory.used == weight_of(text)


def test_a_grammar_that_is_compiled_anew_counts_twice_until_its_replies_have_ended() -> None:
    memory, reply = GrammarMemory(10**9), Reply()
    memory.hold("a", memory.add("a", LLMatcher), reply)  # type: ignore[arg-type]
    memory.make_room("a")
    memory.add("a", LLMatcher)  # type: ignore[arg-type]
    assert memory.used == 2 * weight_of("a")
    del reply
    assert memory.used == weight_of("a")


class Replies:
    """Replies that follow grammars within the memory of so many."""

    def __init__(self, most: int) -> None:
        self.factory = MaskFactory(lambda action: action())
        self.factory.use_vocabulary(TOKENS, most * weight_of(choice(0)))
        self.begun: SimpleQueue[int] = SimpleQueue()
        self.masks: dict[int, Any] = {}
        self.failed: list[Any] = []

    def begin(self, key: int, number: int) -> None:
        """Begin a reply that follows the choice of a number."""

        def begin(mask: TokenMask | None) -> None:
            self.masks[key] = mask
            self.begun.put(key)

        self.factory.begin(key, choice(number), (1,), begin, self.failed.append)

    def end(self, key: int) -> None:
        """End a reply."""
        self.masks.pop(key).allowed()
        gc.collect()

    def next(self, timeout: float = 30) -> int | None:
        """Return the reply that begins next; None if none does."""
        try:
            return self.begun.get(timeout=timeout)
        except Empty:
            return None


def test_masks_of_ended_replies_give_their_grammars_memory_back() -> None:
    replies = Replies(1)
    for number in range(3):
        replies.begin(number, number)
        assert replies.next() == number
        replies.end(number)
    assert replies.failed == []


def test_replies_whose_grammar_is_there_wait_for_none_that_has_no_room() -> None:
    replies = Replies(1)
    replies.begin(0, 0)
    assert replies.next() == 0
    replies.begin(1, 1)
    replies.begin(2, 0)
    replies.begin(3, 2)
    assert (replies.next(), replies.next(0.1)) == (2, None)
    replies.end(0)
    assert replies.next(0.1) is None
    replies.end(2)
    assert (replies.next(), replies.next(0.1)) == (1, None)
    replies.end(1)
    assert replies.next() == 3


def test_a_grammar_that_is_followed_for_ever_lets_others_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GrammarQueue.__init__, "__defaults__", (0.0,))
    replies = Replies(1)
    replies.begin(0, 0)
    assert replies.next() == 0
    replies.begin(1, 1)
    replies.begin(2, 0)
    assert replies.next(0.1) is None
    replies.end(0)
    assert (replies.next(), replies.next(0.1)) == (1, None)
    replies.end(1)
    assert replies.next() == 2


def test_a_reply_that_is_cancelled_lets_those_behind_it_go_on() -> None:
    replies = Replies(2)
    for key in range(2):
        replies.begin(key, key)
        assert replies.next() == key
    replies.begin(2, 2)
    replies.begin(3, 3)
    replies.factory.cancel(2)
    assert replies.next(0.1) is None
    replies.end(0)
    assert replies.next() == 3


def test_the_thread_ends_with_what_it_serves() -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "grammars"}

    before = threads()
    replies = Replies(1)
    replies.begin(0, 0)
    assert replies.next() == 0
    (thread,) = threads() - before
    del replies
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_the_thread_outlives_a_panic() -> None:
    def panic() -> bool:
        raise BaseException("a panic of a library")

    replies = Replies(1)
    assert replies.factory._queue is not None
    replies.factory._queue.put(Turn("", panic))
    replies.begin(0, 0)
    assert replies.next() == 0


def test_schemas_of_tools_and_formats_need_fewer_states_than_they_may_have() -> None:
    formats = ("date-time", "email", "uuid", "ipv4", "ipv6", "uri", "hostname", "duration")
    fields = {name: {"type": "string", "format": name} for name in formats}
    fields |= {f"note {number}": {"type": "string", "maxLength": 60} for number in range(3)}
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    style = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    text = HEADER + "start: %json " + json.dumps({**schema, "x-guidance": style})
    matcher = Grammars(TOKENS).matcher(LLMatcher.grammar_from_lark(text))
    given = {
        "date-time": "2026-01-31T23:59:59.5Z",
        "email": "a.b@example.com",
        "uuid": "123e4567-e89b-12d3-a456-426614174000",
        "ipv4": "192.168.254.1",
        "ipv6": "2001:db8::1",
        "uri": "https://example.com/a?b=c#d",
        "hostname": "a.example.com",
        "duration": "P3DT4H5M",
        **{f"note {number}": "ä" * 60 for number in range(3)},
    }
    reply = json.dumps(given, ensure_ascii=False).encode()
    for byte in reply:
        matcher.compute_bitmask()
        assert matcher.consume_token(byte + 2), matcher.get_error()
    assert matcher.is_accepting()


MEASURE = """
import sys
from llguidance import LLMatcher
from predictor.engine.generation.grammar import Grammars, Vocabulary
from predictor.engine.generation.grammar_memory import weight_of

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

tokens = [bytes([byte]) for byte in range(256)] + [b"%04d" % number for number in range(4000)]
grammars = Grammars(Vocabulary(tuple(tokens), ()), 10**9)
grammars.matcher(LLMatcher.grammar_from_lark('%llguidance {"no_forcing": true}\\nstart: "a"'))
before, weight, held = resident(), 0, []
for index in range(6):
    text = '%llguidance {"no_forcing": true}\\nstart: %json {"type": "object", "properties": {'
    text += ", ".join(f'"p{index}x{number}": {{}}' for number in range(2000))
    text += '}, "required": [' + ", ".join(f'"p{index}x{number}"' for number in range(2000)) + "]}"
    text = LLMatcher.grammar_from_lark(text)
    held.append(grammars.matcher(text))
    weight += weight_of(text)
    text = LLMatcher.grammar_from_lark('%llguidance {"no_forcing": true}\\n'
        'start: /(.|\\\\n)*' + "abcdef"[index] + '(.|\\\\n){900}/')
    held.append(matcher := grammars.matcher(text))
    weight += weight_of(text)
    for step in range(1500):
        matcher.compute_bitmask()
        if not matcher.consume_token(256 + (step * 7919) % 4000):
            break
print(resident() - before, weight)
"""


def test_no_grammar_takes_more_than_it_counts() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    taken, counted = map(int, done.stdout.split())
    assert 0.05 * counted < taken < counted
