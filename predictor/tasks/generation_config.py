"""A model's generation config: which keys are followed, and which only named in the log.

Every key that could change a reply is in one of three groups: followed keys, keys that change
nothing here, and all others, which `ignored_keys` names. So a key that is new or a model's own is
named too. `check_generation_config` looks at the values before a weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.errors import CheckpointError, RequestError, reason_of
from predictor.tasks.parameters import Check, boolean, bounded, integer

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
            config: The model's ``transformers.GenerationConfig``. Values that
                `check_generation_config` would refuse are ignored: a ``config.json`` may have keys
                of these names that mean something else.
            max_length: The setting of this name: the `max_new_tokens` of a config that has none.
            prefix: Tokens that a decoder begins with; 0 if replies continue prompts. The config's
                own `max_length` counts them, and is followed for such models only.
        """
        usable = {name: value for name in FOLLOWED if (value := _usable(config, name)) is not None}
        temperature = usable.get("temperature", 1.0)
        temperature = 0.0 if temperature < _LEAST_TEMPERATURE else temperature
        is_sampled = usable.get("do_sample", False)
        of_decoder = max(usable.get("max_length", 0) - prefix, 0) if prefix else 0
        new_tokens = usable.get("max_new_tokens") or of_decoder or max_length
        min_new_tokens = usable.get("min_new_tokens", 0)
        return cls(
            new_tokens or cls().max_new_tokens,
            temperature=temperature if is_sampled else 0.0,
            sampling_temperature=temperature if temperature or is_sampled else 1.0,
            top_p=usable.get("top_p", 1.0),
            top_k=usable.get("top_k", 0),
            min_p=usable.get("min_p", 0.0),
            repetition_penalty=usable.get("repetition_penalty", 1.0),
            min_length=0 if min_new_tokens else usable.get("min_length", 0),
            min_new_tokens=min_new_tokens,
            no_repeat_ngram_size=usable.get("no_repeat_ngram_size", 0),
            suppress_tokens=tuple(usable.get("suppress_tokens", ())),
            begin_suppress_tokens=tuple(usable.get("begin_suppress_tokens", ())),
        )


def check_generation_config(path: Path, *, has_encoder: bool) -> None:
    """Check the values of a model's generation config, which old models have in ``config.json``.

    Args:
        path: The model's directory, or a bare ``config.json``.
        has_encoder: Whether the model has an encoder. Keys of others are not followed, so these
            are not checked.

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
    names = FOLLOWED.keys() if file == own else _OF_CONFIGS
    check_values(values, file, names if has_encoder else names - _OF_ENCODERS)
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


def check_values(values: Mapping[str, Any], file: Path, names: Set[str]) -> None:
    """Check the values of keys that are followed; null is the same as an absent value.

    Raises:
        CheckpointError: A value has the wrong type or lies outside its range.
    """
    for name in (name for name in FOLLOWED if name in names and values.get(name) is not None):
        try:
            FOLLOWED[name](name, values[name])
        except RequestError as error:
            raise CheckpointError(f"{file}: {error}") from None


def _usable(config: Any, name: str) -> Any:
    """Return the checked value of a key that is followed; None if it is absent or wrong."""
    value = getattr(config, name, None)
    try:
        return None if value is None else FOLLOWED[name](name, value)
    except RequestError:
        return None


def ignored_keys(config: Any, *, has_prefix: bool) -> list[str]:
    """Return the keys of a generation config that would change replies and are not followed.

    Args:
        config: The model's ``transformers.GenerationConfig``.
        has_prefix: Whether the model has a decoder with a prefix of its own.
    """
    followed = FOLLOWED if has_prefix else FOLLOWED.keys() - _OF_ENCODERS
    return sorted(
        name
        for name, value in vars(config).items()
        if not name.startswith("_")
        and (name not in followed or _usable(config, name) is None)
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


def _at_least(least: int) -> Check:
    def check(name: str, value: Any) -> int:
        is_whole = isinstance(value, float) and value.is_integer()
        return integer(name, int(value) if is_whole else value, least, _MOST)

    return check


def _top_k(name: str, value: Any) -> int:
    """Return the number of tokens; -1 is all of them, as for vLLM."""
    return max(0, int(_at_least(-1)(name, value)))


def _tokens(name: str, value: Any) -> list[int]:
    if not isinstance(value, list):
        raise RequestError(f"{name} must be a list of token ids.")
    return [integer(name, token, -1, _MOST) for token in value]


def _token_or_tokens(name: str, value: Any) -> list[int]:
    return _tokens(name, value if isinstance(value, list) else [value])


def _token_or_list_of_one(name: str, value: Any) -> int:
    """Return the token; transformers takes a list of one for each sequence of a batch."""
    tokens = value if isinstance(value, list) else [value]
    if len(tokens) != 1:
        raise RequestError(f"{name} must be one token id, not {len(tokens)}.")
    return integer(name, tokens[0], 0, _MOST)


FOLLOWED: dict[str, Check] = {
    "do_sample": boolean,
    "temperature": bounded(0, float(2**31)),
    "top_p": bounded(0, 1),
    "top_k": _top_k,
    "min_p": bounded(0, 1),
    "repetition_penalty": bounded(1e-3, 1e3),
    "max_new_tokens": _at_least(1),
    "max_length": _at_least(0),
    "min_length": _at_least(0),
    "min_new_tokens": _at_least(0),
    "no_repeat_ngram_size": _at_least(0),
    "suppress_tokens": _tokens,
    "begin_suppress_tokens": _tokens,
    "eos_token_id": _token_or_tokens,
    "forced_bos_token_id": _at_least(0),
    "decoder_start_token_id": _token_or_list_of_one,
}
"""Keys that are followed, and the check of each."""

_OF_ENCODERS = {"max_length", "forced_bos_token_id", "decoder_start_token_id"}
"""Those that are followed for models with an encoder only."""

_OF_CONFIGS = {"eos_token_id", "forced_bos_token_id", "decoder_start_token_id"}
"""Those that mean the same in every ``config.json``. There the others may be a model's own."""

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
