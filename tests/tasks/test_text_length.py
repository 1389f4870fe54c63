"""Texts that are too long by their characters alone: no text that fits may be among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from predictor.errors import PromptTooLong
from predictor.tasks.large_texts import pieces
from predictor.tasks.text_length import CHARACTERS_PER_TOKEN, lengths_of
from predictor.tasks.tokenization import Tokenizing

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def fast(tokenizer: Tokenizer, *added: AddedToken) -> Any:
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_level(*added: AddedToken, normalizer: Any = None) -> Any:
    vocabulary = {token: number for number, token in enumerate([*BYTES, "ab", "abab", "ĠĠ"])}
    merges = [("a", "b"), ("ab", "ab"), ("Ġ", "Ġ")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return fast(tokenizer, *added)


def byte_fallback() -> Any:
    names = ["▁", "a", "b", "ab", "▁ab", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: number for number, token in enumerate(names)}
    merges = [("a", "b"), ("▁", "ab")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return fast(tokenizer)


def word_piece() -> Any:
    vocabulary = {"[UNK]": 0, "a": 1, "##a": 2}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return fast(tokenizer)


def dropping() -> Any:
    return byte_level(normalizer=normalizers.StripAccents())


def without_bytes() -> Any:
    """A BPE that has every byte's character, and makes one token of any unknown characters."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", *BYTES])}
    model = models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True)
    return fast(Tokenizer(model))


MASK = AddedToken("<mask>", lstrip=True, rstrip=True)
BOUND: dict[str, Callable[[], Any]] = {
    "demo": lambda: AutoTokenizer.from_pretrained(DEMO),
    "byte level": byte_level,
    "with a token that takes the space around it": lambda: byte_level(MASK),
    "composed": lambda: byte_level(normalizer=normalizers.NFC()),
    "byte fallback": byte_fallback,
}


@pytest.fixture(scope="module", params=BOUND)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return BOUND[request.param]()


MORE = ["ω\u0314\u0342\u0345", "한", "😀", "\x00", "é"]  # one letter of four, one of three
PIECES = ["ab", "abab", "a", " ", "  ", "\n", "<mask>", *MORE]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(parts=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=40))
def test_no_text_with_so_few_tokens_is_refused(tokenizer: Any, parts: list[str]) -> None:
    text = "".join(parts)
    lengths = lengths_of(tokenizer)
    assert lengths.is_bound
    count = len(tokenizer(text, add_special_tokens=False).input_ids)
    assert not lengths.exceed(count, text)


def test_a_token_may_have_as_many_characters_as_the_longest() -> None:
    assert lengths_of(byte_level()).per_token == len("abab")
    assert lengths_of(byte_level(MASK)).per_token == len("<mask>")
    assert lengths_of(byte_level(normalizer=normalizers.NFC())).per_token == 4 * len("abab")


@pytest.mark.parametrize("make", [word_piece, dropping, without_bytes])
def test_without_a_bound_only_texts_beyond_reason_are_refused(make: Callable[[], Any]) -> None:
    lengths = lengths_of(make())
    assert (lengths.per_token, lengths.is_bound) == (CHARACTERS_PER_TOKEN, False)
    assert not lengths.exceed(10, "a" * 10 * CHARACTERS_PER_TOKEN)
    assert not lengths.exceed(10, "a " * 10 * CHARACTERS_PER_TOKEN)
    assert lengths.exceed(10, "a" * 10 * CHARACTERS_PER_TOKEN, "a")


def test_the_sentence_says_what_it_knows() -> None:
    text = "a" * 100_000
    for make, sentence in (
        (byte_level, "A prompt of 100000 characters has more than 8 tokens; and so on."),
        (word_piece, "A prompt of 100000 characters has more than 8 times 256, and is not"),
    ):
        with pytest.raises(PromptTooLong, match=sentence):
            lengths_of(make()).check(8, "A prompt", "and so on.", text)


def test_white_space_is_not_counted_in_any_part_of_a_text() -> None:
    lengths = lengths_of(byte_level())
    spaces = " \n\u2003" * 20_000
    most = "a" * (5 * lengths.per_token)
    assert not lengths.exceed(5, spaces + most + spaces)
    assert not lengths.exceed(5, spaces, most)
    assert lengths.exceed(5, spaces + most + spaces, "b")
    assert lengths.exceed(5, spaces + most + spaces + "b")


def test_a_text_to_be_cut_is_tokenised_however_long_it_is() -> None:
    tokenizing = Tokenizing(byte_level(), 8)
    with pytest.raises(PromptTooLong, match=r"^A text of 1000 characters has more than 8 tokens; "):
        tokenizing.text("a" * 1000)
    assert tokenizing.text("a" * 1000, cut=8).ids == tuple(tokenizing.text("a" * 8).ids)


LARGE_TEXTS = {
    "words": "weather today " * 20_000,
    "a token for each byte": "\u4e00x," * 50_000,
    "white space": " " * 300_000,
    "one word": "=" * 300_000,
}


@pytest.mark.parametrize("keeps_end", [False, True])
@pytest.mark.parametrize("name", LARGE_TEXTS)
def test_a_large_text_is_cut_as_if_it_were_tokenised_whole(
    tokenizer: Any, name: str, keeps_end: bool
) -> None:
    text, tokens = LARGE_TEXTS[name], 700
    part = lengths_of(tokenizer).cut(text, tokens, keeps_end=keeps_end)
    whole, cut = (
        tokenizer(one, add_special_tokens=False, verbose=False).input_ids for one in (text, part)
    )
    chosen = slice(-tokens, None) if keeps_end else slice(tokens)
    assert cut[chosen] == whole[chosen]
    assert len(part) <= 3 * 32 * 1024


def test_a_large_text_that_fits_is_not_cut(tokenizer: Any) -> None:
    text = "weather today " * 20_000
    lengths = lengths_of(tokenizer)
    assert lengths.cut(text, len(text)) is text or lengths.cut(text, len(text)) == text
    lengths.check(len(text), "A text", "so.", text)


@pytest.mark.parametrize("name", LARGE_TEXTS)
def test_a_large_text_is_refused_before_it_is_tokenised_whole(tokenizer: Any, name: str) -> None:
    longest = 0

    def count(text: str) -> int:
        nonlocal longest
        longest = max(longest, len(text))
        return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    lengths = replace(lengths_of(tokenizer), count=count)
    with pytest.raises(PromptTooLong, match="characters has more than 700 "):
        lengths.check(700, "A text", "so.", LARGE_TEXTS[name])
    assert longest <= 32 * 1024


@given(st.text(st.sampled_from("ab \n"), max_size=200_000), st.booleans())
@settings(max_examples=20, deadline=None)
def test_pieces_of_a_text_are_all_of_it(text: str, from_end: bool) -> None:
    parts = list(pieces(text, from_end=from_end))
    assert "".join(reversed(parts) if from_end else parts) == text


@pytest.mark.parametrize("text", ["foo" + " " * 70_000 + "bar", " " * 70_000 + "foo"])
def test_a_cut_does_not_take_white_space_for_the_tokens_behind_it(text: str) -> None:
    lengths = lengths_of(word_piece())
    with pytest.raises(PromptTooLong, match="too much white space to be cut to 100 tokens"):
        lengths.cut(text, 100)
    assert lengths.cut(text, 4000) == text


def test_offsets_are_those_of_the_text_if_its_beginning_is_cut() -> None:
    tokenizer = byte_level()
    tokenizer.truncation_side = "left"
    text = "foo " * 30_000 + "bar"
    encoding = Tokenizing(tokenizer, 8).encode(text, cut=4, return_offsets_mapping=True)
    last = len(text)
    assert encoding["offset_mapping"] == [(last - n, last - n + 1) for n in (4, 3, 2, 1)]
