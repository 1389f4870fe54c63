"""A model's generation config: which keys are followed, and which only named in the log.

Every key that could change a reply is in one of three groups: followed keys, keys that change
nothing here, and all others, which `ignored_keys` names. So a key that is new or a model's own is
named too. `check_generation_config` looks at the values before a weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.errors import CheckpointError, RequestError, reason_of
from predictor.tasks.parameters import Check, boolean, integer, number

_MOST = 2**31 - 1

_LEAST_TEMPERATURE = 1e-6
"""Below it a model is greedy: the logits divided by it could overflow float32."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """Parameters where a request specifies none: the model's generation config, made explicit.

    Attributes:
        max_new_tokens: Most new tokens of a reply.
        temperature: 0 unless the model's config has `do_sample`.
        sampling_temperature: The temperature if a request has `top_p`, `top_k` or `min_p` alone.
        top_p: Probability mass to sample from.
        top_k: Tokens to sample from; 0 is all, also if the config has no value.
        min_p: Least probability of a token, as a fraction of the most probable one's.
        repetition_penalty: 1 is none.
        min_length: Least tokens of the prompt or the decoder's prefix, and the reply.
        min_new_tokens: Least tokens of a reply, those that are forced among them.
        no_repeat_ngram_size: So many consecutive tokens never stand in a sequence twice; 0 is any.
        suppress_tokens: Tokens that are never generated.
        begin_suppress_tokens: Tokens that are not generated first.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    sampling_temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_length: int = 0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Any, max_length: int | None, *, prefix: int = 0) -> Defaults:
        """Return the defaults of a model.

        Args:
            config: The model's ``transformers.GenerationConfig``.
            max_length: The setting of this name: the `max_new_tokens` of a config that has none.
            prefix: Tokens that a decoder begins with; 0 if replies continue prompts. The config's
                own `max_length` counts them, and is followed for such models only.
        """
        temperature = 1.0 if config.temperature is None else float(config.temperature)
        temperature = 0.0 if temperature < _LEAST_TEMPERATURE else temperature
        of_decoder = max((config.max_length or 0) - prefix, 0) if prefix else 0
        return cls(
            config.max_new_tokens or of_decoder or max_length or cls().max_new_tokens,
            temperature=temperature if config.do_sample else 0.0,
            sampling_temperature=temperature if temperature or config.do_sample else 1.0,
            top_p=1.0 if config.top_p is None else config.top_p,
            top_k=config.top_k or 0,
            min_p=config.min_p or 0.0,
            repetition_penalty=config.repetition_penalty or 1.0,
            min_length=0 if config.min_new_tokens else config.min_length or 0,
            min_new_tokens=config.min_new_tokens or 0,
            no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
            suppress_tokens=tuple(config.suppress_tokens or ()),
            begin_suppress_tokens=tuple(config.begin_suppress_tokens or ()),
        )


def check_generation_config(path: Path) -> None:
    """Check the values of a model's generation config, which old models have in ``config.json``.

    Args:
        path: The model's directory, or a bare ``config.json``.

    Raises:
        CheckpointError: A value has the wrong type or lies outside its range, or transformers
            refuses the file.
    """
    from transformers import GenerationConfig

    own = path / "generation_config.json"
    file = path if path.is_file() else own if own.is_file() else path / "config.json"
    try:
        values = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {reason_of(error)}.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    check_values(values, file)
    try:
        GenerationConfig.from_pretrained(
            file.parent,
            config_file_name=file.name,
            local_files_only=True,
            _from_model_config=file != own,
        )
    # transformers raises errors of many classes.
    except Exception as error:
        raise CheckpointError(f"{file} cannot be used: {reason_of(error)}") from None


def check_values(values: Mapping[str, Any], file: Path) -> None:
    """Check the values of the keys that are followed; null is the same as an absent value.

    Raises:
        CheckpointError: A value has the wrong type or lies outside its range.
    """
    for name, check in _FOLLOWED.items():
        if values.get(name) is None:
            continue
        try:
            check(name, values[name])
        except RequestError as error:
            raise CheckpointError(f"{file}: {error}") from None


def ignored_keys(config: Any, *, has_prefix: bool) -> list[str]:
    """Return the keys of a generation config that would change replies and are not followed.

    Args:
        config: The model's ``transformers.GenerationConfig``.
        has_prefix: Whether the model has a decoder with a prefix of its own.
    """
    followed = _FOLLOWED if has_prefix else _FOLLOWED.keys() - _OF_DECODERS
    return sorted(
        name
        for name, value in vars(config).items()
        if not name.startswith("_")
        and name not in followed
        and name not in _CHANGE_NOTHING
        and value
        and value != _OFF.get(name)
    )


def end_tokens(config: Any, path: Path) -> frozenset[int]:
    """Return the tokens that end a reply: those of the generation config and of the config.

    The end token of a config's class counts only if no file names one. The tokenizer's is added
    where the tokenizer is.

    Args:
        config: The model's ``transformers.GenerationConfig``.
        path: The model's directory.
    """
    document = json.loads((path / "config.json").read_bytes())
    text = document.get("text_config")
    values = [config.eos_token_id, document.get("eos_token_id")]
    values.append(text.get("eos_token_id") if isinstance(text, dict) else None)
    tokens = (token if isinstance(token, list) else [token] for token in values)
    return frozenset(token for group in tokens for token in group if isinstance(token, int))


def _bounded(least: float, most: float) -> Check:
    def check(name: str, value: Any) -> float:
        given = number(name, value)
        if not least <= given <= most:
            raise RequestError(f"{name} must be between {least:g} and {most:g}, not {given:g}.")
        return given

    return check


def _at_least(least: int) -> Check:
    return lambda name, value: integer(name, value, least, _MOST)


def _tokens(name: str, value: Any) -> list[int]:
    tokens = value if isinstance(value, list) else [value]
    return [integer(name, token, -1, _MOST) for token in tokens]


_FOLLOWED: dict[str, Check] = {
    "do_sample": boolean,
    "temperature": _bounded(0, float(2**31)),
    "top_p": _bounded(0, 1),
    "top_k": _at_least(0),
    "min_p": _bounded(0, 1),
    "repetition_penalty": _bounded(1e-3, 1e3),
    "max_new_tokens": _at_least(1),
    "max_length": _at_least(0),
    "min_length": _at_least(0),
    "min_new_tokens": _at_least(0),
    "no_repeat_ngram_size": _at_least(0),
    "suppress_tokens": _tokens,
    "begin_suppress_tokens": _tokens,
    "eos_token_id": _tokens,
    "forced_bos_token_id": _at_least(0),
    "decoder_start_token_id": _at_least(0),
}
"""Keys that are followed, and the check of each."""

_OF_DECODERS = {"max_length", "forced_bos_token_id", "decoder_start_token_id"}
"""Those that are followed for models with an encoder only."""

_OFF: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "typical_p": 1,
    "length_penalty": 1,
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
    "max_length": 20,
}
"""Values that change nothing, beside null, false, 0 and empty ones. A `max_length` of 20 is the
value that transformers wrote into every config."""

_CHANGE_NOTHING = {
    *("pad_token_id", "bos_token_id", "transformers_version", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "return_legacy_cache", "renormalize_logits"),
    *("remove_invalid_values", "compile_config", "disable_compile", "low_memory"),
    *("prefill_chunk_size", "continuous_batching_config", "early_stopping", "use_mtp"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "speculation_type"),
}
"""Keys that change no reply: special tokens of batches, caches, outputs, speed, and the end of a
search with beams, whose number is named."""
