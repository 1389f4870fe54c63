"""Texts that are too long by their characters alone: no text that fits may be among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from predictor.errors import PromptTooLong
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
