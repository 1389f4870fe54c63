"""Tokens that become text as they come, against one decoding of them all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from predictor.tasks.detokenizer import TextStream
from predictor.tasks.token_lists import tokens_within
from tests.checkpoints import byte_tokenizer

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
TEXTS = [
    "Zürich 東京 🙂 é",
    "👩‍👩‍👧 family, 🇨🇭 flag, e\u0301 accent",
    "plain words, then\n\tspaces   and tabs\n",
    "हिन्दी العربية עברית ไทย",
    "\U0001f642" * 12,
    " leading",
    "",
]


@pytest.fixture(scope="module")
def of_bytes() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def demo() -> Any:
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def of_words() -> Any:
    """A tokenizer as SentencePiece makes them: decoding drops a leading space."""
    words = ["<s>", "</s>", "▁hello", "▁foo", "▁bar", "ish", "▁", "!"]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def of_byte_tokens() -> Any:
    """A tokenizer as SentencePiece makes them, with a token for each byte that it needs."""
    words = ["<s>", "</s>", "<unk>", "a", "b", "x", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(
        vocab={word: i for i, word in enumerate(words)},
        merges=[],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def ids_of(tokenizer: Any, text: str) -> list[int]:
    result: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return result


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def reply(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text after a prompt, by one decoding of both."""
    return decode(tokenizer, [*prompt, *ids]).removeprefix(decode(tokenizer, prompt))


def pieces(
    tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], *stops: str
) -> tuple[list[str], TextStream]:
    """What each token releases, and at the end what the end does; a stop sequence ends it."""
    stream = TextStream(tokenizer, prompt, stops)
    result = []
    for token in ids:
        result.append(stream.push(token))
        assert stream.text == "".join(result)
        if stream.stopped:
            break
    result.append(stream.finish())
    assert stream.text == "".join(result)
    return result, stream


def whole(text: str) -> str:
    """A text without half a character at its end."""
    lost = len(text) - len(text.rstrip("\ufffd"))
    return text[: len(text) - min(lost, 3)]


# Characters


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", ["Say: ", "é", "🙂🙂🙂", ""])
def test_characters_of_several_bytes_come_whole(of_bytes: Any, prompt: str, text: str) -> None:
    result, _ = pieces(of_bytes, ids_of(of_bytes, prompt), ids_of(of_bytes, text))
    assert "".join(result) == text
    assert not any("\ufffd" in piece for piece in result)
    # Each comes with its last byte.
    by_byte = [byte for char in text for byte in [""] * (len(char.encode()) - 1) + [char]]
    assert result == [*by_byte, ""]


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_character_that_is_never_finished_is_left_out(of_bytes: Any, missing: int) -> None:
    ids = ids_of(of_bytes, "ab🙂")[:-missing]
    result, _ = pieces(of_bytes, [70], ids)
    assert result == ["a", "b", *[""] * (5 - missing)]
    stream = TextStream(of_bytes, [70])
    for token in ids:
        stream.take(token)
    assert stream.finish() == "ab"


@pytest.mark.parametrize("missing", [1, 2, 3])
@pytest.mark.parametrize("before", ["", "é", "\U0001f642", "a\U0001f642é"])
def test_characters_before_one_that_is_never_finished_stay(
    of_byte_tokens: Any, before: str, missing: int
) -> None:
    ids = ids_of(of_byte_tokens, before + "\U0001f642")[:-missing]
    result, _ = pieces(of_byte_tokens, ids_of(of_byte_tokens, "x"), ids)
    assert "".join(result) == before


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["of_bytes", "demo", "of_byte_tokens"])
def test_a_replacement_character_that_was_generated_stays(
    request: pytest.FixtureRequest, kind: str, count: int, missing: int
) -> None:
    tokenizer = request.getfixturevalue(kind)
    marks = ids_of(tokenizer, "ab" + "\ufffd" * count)
    half = ids_of(tokenizer, "\U0001f642")[:-missing] if missing else []
    result, _ = pieces(tokenizer, ids_of(tokenizer, "x"), [*marks, *half, tokenizer.eos_token_id])
    assert "".join(result) == "ab" + "\ufffd" * count


@pytest.mark.parametrize("bytes_of_it", [1, 2])
def test_a_replacement_character_that_lacks_bytes_is_left_out(
    of_bytes: Any, bytes_of_it: int
) -> None:
    ids = ids_of(of_bytes, "ab\ufffd")[: 2 + bytes_of_it]
    assert "".join(pieces(of_bytes, [70], ids)[0]) == "ab"


def test_bytes_that_are_no_text_are_held_back_for_a_while_only(of_bytes: Any) -> None:
    continuation = ids_of(of_bytes, "é")[1]
    result, _ = pieces(of_bytes, [70], [continuation] * 40)
    assert "".join(result) == "\ufffd" * 37
    assert result[16] == "\ufffd" * 17
    assert result[-1]


def test_any_bytes_stream_as_they_decode(of_bytes: Any) -> None:
    chance = random.Random(1)
    for _ in range(100):
        ids = [chance.randrange(4, 260) for _ in range(60)]
        result, _ = pieces(of_bytes, [70, 71], ids)
        assert "".join(result) == whole(decode(of_bytes, ids))


def test_a_prompt_that_ends_within_a_character_is_not_said_again(of_bytes: Any) -> None:
    smile = ids_of(of_bytes, "🙂")
    prompt = [*ids_of(of_bytes, "hello "), *smile[:2]]
    result, _ = pieces(of_bytes, prompt, [*smile[2:], *ids_of(of_bytes, "!")])
    assert "".join(result) == "🙂!"


def test_no_text_but_bytes_are_not_said_again_with_a_character_that_follows(of_bytes: Any) -> None:
    smile = ids_of(of_bytes, "🙂")
    result, _ = pieces(of_bytes, [70], [smile[1]] * 15 + smile)  # given up within the character
    assert "".join(result).count("\ufffd") <= 16
    assert "".join(result).endswith("🙂")


@pytest.mark.parametrize("text", TEXTS)
def test_the_demos_tokens_stream_as_they_decode(demo: Any, text: str) -> None:
    prompt = ids_of(demo, "Today the weather is really nice and")
    ids = ids_of(demo, text)
    result, _ = pieces(demo, prompt, ids)
    assert "".join(result) == reply(demo, prompt, ids)
    assert not any("\ufffd" in piece for piece in result)


def test_any_tokens_of_the_demo_stream_as_they_decode(demo: Any) -> None:
    chance = random.Random(2)
    for _ in range(100):
        prompt = [chance.randrange(3, demo.vocab_size) for _ in range(chance.randint(1, 12))]
        ids = [chance.randrange(demo.vocab_size) for _ in range(40)]
        if decode(demo, prompt[-8:]).endswith("\ufffd"):
            continue
        result, _ = pieces(demo, prompt, ids)
        assert "".join(result) == whole(reply(demo, prompt, ids))


# Spaces


@pytest.mark.parametrize("prompt", [[2], [0, 2], [0], [], [2, 6], [2] * 20])
def test_spaces_come_as_they_do_in_one_decoding(of_words: Any, prompt: list[int]) -> None:
    chance = random.Random(3)
    for _ in range(50):
        ids = [chance.choice([3, 3, 4, 5, 6, 7]) for _ in range(15)]
        result, _ = pieces(of_words, prompt, ids)
        assert "".join(result) == reply(of_words, prompt, ids)


def test_the_first_word_of_a_reply_keeps_its_space(of_words: Any) -> None:
    result, _ = pieces(of_words, [0, 2], [3, 5, 4])
    assert result == [" foo", "ish", " bar", ""]


def test_a_reply_to_nothing_begins_without_a_space(of_words: Any) -> None:
    result, _ = pieces(of_words, [0], [3, 4])
    assert result == ["foo", " bar", ""]


def test_special_tokens_are_no_text(of_words: Any, of_bytes: Any) -> None:
    result, _ = pieces(of_words, [0, 2], [3, 5, 1])
    assert result == [" foo", "ish", "", ""]
    result, _ = pieces(of_bytes, [70], [*ids_of(of_bytes, "a"), 2, *ids_of(of_bytes, "é"), 2])
    assert "".join(result) == "aé"


def test_a_special_token_within_a_reply_costs_no_space(of_words: Any) -> None:
    result, _ = pieces(of_words, [0, 2], [3, 1, 4, 1])
    assert "".join(result) == reply(of_words, [0, 2], [3, 1, 4, 1]) == " foo bar"


def test_tokens_that_nobody_reads_along_come_at_the_end(of_bytes: Any) -> None:
    stream = TextStream(of_bytes, [70])
    for token in ids_of(of_bytes, TEXTS[0]):
        stream.take(token)
    assert stream.text == ""
    assert stream.finish() == TEXTS[0] == stream.text


# Stop sequences


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", (" t", "three"), "one"),
        ("one two three", ("three", "two"), "one "),
        ("one two three", ("o",), ""),
        ("abab abac", ("abac",), "abab "),
        ("aaaaab", ("aab",), "aaa"),
        ("Zürich 東京 🙂", ("京",), "Zürich 東"),
        ("line\n\nnext", ("\n\n",), "line"),
    ],
)
def test_a_stop_sequence_and_all_after_it_is_cut(
    of_bytes: Any, demo: Any, text: str, stops: tuple[str, ...], expected: str
) -> None:
    for tokenizer in (of_bytes, demo):
        prompt = ids_of(tokenizer, "Say:\n")
        ids = ids_of(tokenizer, text)
        wanted = expected
        if tokenizer is demo:  # its tokens begin with a space of their own
            whole = reply(demo, prompt, ids)
            wanted = whole[: min(whole.find(stop) for stop in stops if stop in whole)]
        result, stream = pieces(tokenizer, prompt, ids, *stops)
        assert stream.stopped
        assert "".join(result) == stream.text == wanted
        assert result[-1] == ""


def test_what_may_begin_a_stop_sequence_is_held_until_it_does_not(of_bytes: Any) -> None:
    result, stream = pieces(of_bytes, [70], ids_of(of_bytes, "a\n\nUs. User: b"), "\n\nUser:")
    assert result == ["a", "", "", "", "", "\n\nUs.", " ", "U", "s", "e", "r", ":", " ", "b", ""]
    assert not stream.stopped


def test_a_stop_sequence_that_begins_again_within_itself_is_met(of_bytes: Any) -> None:
    result, stream = pieces(of_bytes, [70], ids_of(of_bytes, "xabababc"), "ababc")
    assert result == ["x", "", "", "", "", "ab", "", "", ""]
    assert stream.stopped


def test_what_was_held_for_a_stop_sequence_comes_at_the_end(of_bytes: Any) -> None:
    result, stream = pieces(of_bytes, [70], ids_of(of_bytes, "go on EN"), "END", "EN?")
    assert result[-1] == "EN"
    assert "".join(result) == "go on EN"
    assert not stream.stopped


def test_a_stop_sequence_across_tokens_of_words_is_met(of_words: Any) -> None:
    result, stream = pieces(of_words, [0, 2], [3, 5, 4, 3], "sh b")
    assert "".join(result) == " fooi"
    assert stream.stopped
    assert len(result) == 3 + 1  # the last token is not asked for


def test_a_stop_sequence_in_what_comes_last_is_cut_there(of_bytes: Any) -> None:
    stream = TextStream(of_bytes, [70], ("two",))
    for token in ids_of(of_bytes, "one two three"):
        stream.take(token)
    assert stream.finish() == "one "
    assert stream.stopped
    assert stream.finish() == ""


def test_streams_with_stops_say_what_one_search_says(of_bytes: Any) -> None:
    chance = random.Random(4)
    for _ in range(300):
        text = "".join(chance.choice("abé") for _ in range(30))
        stops = ["".join(chance.choice("abé") for _ in range(chance.randint(2, 5))) for _ in "xy"]
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        seen = text[: min(ends)] if ends else text  # nothing after the first that is complete
        expected = seen[: min([seen.find(stop) for stop in stops if stop in seen], default=30)]
        result, stream = pieces(of_bytes, [70], ids_of(of_bytes, text), *stops)
        assert "".join(result) == expected
        assert stream.stopped == bool(ends)


@pytest.mark.parametrize(
    ("stops", "stop"), [(("d", "bc"), "bc"), (("c", "abc"), "abc"), (("x",), ""), ((), "")]
)
def test_the_stop_sequence_that_ended_a_text_is_named(
    of_bytes: Any, stops: tuple[str, ...], stop: str
) -> None:
    stream = TextStream(of_bytes, (), stops)
    for token in of_bytes("abcd").input_ids:
        if not stream.stopped:
            stream.push(token)
    assert (stream.stop, stream.stopped) == (stop, bool(stop))


@pytest.mark.parametrize(
    ("stop", "text", "expected", "is_met"),
    [
        ("<|end|>\n", "a<|end|>\nb", "a", True),
        ("<|end|>\n", "a<|end|>b\n", "ab\n", False),
        ("\n<|end|>", "a\n<|end|>b", "a", True),
        ("a<|end|>b<|end|>", "xa<|end|>b<|end|>", "x", True),
        ("<|end|><|end|>", "a<|end|>b<|end|><|end|>c", "ab", True),
        ("<|end|>\n", "a<|end|>", "a", False),
        (">", "a<|end|>b", "ab", False),
        ("é<|end|>.", "aé<|end|>.", "a", True),
    ],
)
def test_a_stop_may_contain_special_tokens_which_are_no_part_of_the_text(
    stop: str, text: str, expected: str, is_met: bool
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    tokens = {"<|end|>": tokenizer.convert_tokens_to_ids("<|end|>")}
    stream = TextStream(tokenizer, [70], (stop, "zz"), (), tokens_within((stop,), tokens))
    released = ""
    for token in ids_of(tokenizer, text):
        if not stream.stopped:
            released += stream.push(token)
    released += stream.finish()
    assert (released, stream.text) == (expected, expected)
    assert stream.stop == (stop if is_met else "")


def test_a_stop_that_a_model_writes_as_plain_text_is_met(of_bytes: Any) -> None:
    stream = TextStream(of_bytes, [70], ("<|end|>.",), (), {"<|end|>": 10**6})
    for token in ids_of(of_bytes, "a<|end|>."):
        stream.push(token)
    assert (stream.text, stream.stop) == ("a", "<|end|>.")
