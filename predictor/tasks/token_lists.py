"""The parameters of a request that are lists of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from predictor.engine.generation.sampling_params import SamplingParams
from predictor.errors import RequestError
from predictor.tasks.request import GenerationParameters, Prompt

_MOST_WORD_TOKENS = 1024
"""Tokens of all `bad_words` together, which are sent to the engine with every sequence."""


def check_token_ids(requested: GenerationParameters, vocabulary: int) -> None:
    """Check that token ids are in the vocabulary.

    Raises:
        RequestError: One is not.
    """
    for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
        if any(token >= vocabulary for token in getattr(requested, name)):
            raise RequestError(f"{name} names a token id above {vocabulary - 1}.")


def special_tokens(tokenizer: Any, vocabulary: int) -> dict[str, int]:
    """Return the ids of a tokenizer's special tokens, which no reply's text contains.

    Those beyond the model's vocabulary are left out: the model cannot generate them.
    """
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = tokenizer.added_tokens_decoder.items()
    named |= {token.content: number for number, token in added if token.special}
    return {token: number for token, number in named.items() if number < vocabulary}


def with_special_stops(prompt: Prompt, special: Mapping[str, int]) -> tuple[Prompt, dict[int, str]]:
    """Return a prompt whose stop strings that are special tokens end the reply by their ids.

    The text of a reply has no special tokens, so such a string is never in it.

    Args:
        prompt: The prompt.
        special: Special tokens with their ids.

    Returns:
        The prompt, and those of its stop strings by their ids.
    """
    parameters = prompt.parameters
    stops = {special[stop]: stop for stop in parameters.stop if stop in special}
    if not stops:
        return prompt, stops
    ends = parameters.stop_token_ids + tuple(stops)
    return replace(prompt, parameters=replace(parameters, stop_token_ids=ends)), stops


def tokens_within(stops: Sequence[str], special: Mapping[str, int]) -> dict[str, int]:
    """Return the special tokens that stop strings contain beside other text, with their ids."""
    texts = [stop for stop in stops if stop not in special]
    return {
        token: number
        for token, number in (special.items() if texts else ())
        if any(token in text for text in texts)
    }


def check_allowed(sampling: SamplingParams) -> None:
    """Check that a token can be generated at all.

    Raises:
        RequestError: The allowed ones are all suppressed, or end the reply before it may end.
    """
    banned = set(sampling.suppress_tokens)
    if sampling.min_new_tokens:
        banned |= sampling.end_tokens
    if sampling.allowed_tokens and banned.issuperset(sampling.allowed_tokens):
        raise RequestError("None of allowed_token_ids may be generated.")


def words_as_tokens(texts: Sequence[str], tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Return words as tokens: at the beginning of a text, and after a space.

    Raises:
        RequestError: They are too many.
    """
    spelled = [text for word in texts for text in (word, f" {word.lstrip()}")]
    tokenized = (tokenizer(text, add_special_tokens=False).input_ids for text in spelled)
    words = tuple(dict.fromkeys(tuple(ids) for ids in tokenized if ids))
    if sum(map(len, words)) > _MOST_WORD_TOKENS:
        raise RequestError(f"bad_words are more than {_MOST_WORD_TOKENS} tokens.")
    return words
