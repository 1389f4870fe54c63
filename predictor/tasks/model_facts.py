"""The facts of a model that its task needs, taken from its configs by the process that loads it.

The process that answers requests has no model and no torch; it gets these facts, and opens the
tokenizer in the model's directory.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_NOT_APPLIED: dict[str, Any] = {
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_eos_token_id": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
"""Keys of a generation config that would change replies and are not applied, with the values that
change nothing."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """Parameters where a request specifies none: the model's generation config, made explicit.

    Attributes:
        max_new_tokens: Most new tokens of a reply.
        temperature: 0 unless the model's config has `do_sample`.
        sampling_temperature: The temperature if a request has `top_p` or `top_k` alone.
        top_p: Probability mass to sample from.
        top_k: Tokens to sample from; 0 is all, also if the config has no value.
        repetition_penalty: 1 is none.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    sampling_temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, config: Any, max_length: int | None) -> Defaults:
        """Return the defaults of a model.

        Args:
            config: The model's ``transformers.GenerationConfig``.
            max_length: The setting of this name: the `max_new_tokens` of a config that has none.
        """
        temperature = config.temperature or 1.0
        return cls(
            max_new_tokens=config.max_new_tokens or max_length or cls().max_new_tokens,
            temperature=temperature if config.do_sample else 0.0,
            sampling_temperature=temperature,
            top_p=config.top_p if config.top_p is not None else 1.0,
            top_k=config.top_k or 0,
            repetition_penalty=config.repetition_penalty or 1.0,
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A loaded model, as its task knows it.

    Attributes:
        task: The task's name.
        path: The model's directory, which has the tokenizer.
        max_model_len: Most tokens of a text, or of prompt and reply together.
        vocabulary: Number of token ids.
        defaults: Parameters where a request specifies none; None for an encoder task.
        decoder_prefix: Tokens that every reply of an encoder-decoder begins with; None if replies
            continue prompts.
        labels: The labels, in the order of the logits, for classification.
        problem_type: The config's key of this name, for classification.
        dimensions: The numbers of dimensions that embeddings may have, the full one first.
    """

    task: str
    path: Path
    max_model_len: int
    vocabulary: int
    defaults: Defaults | None = None
    decoder_prefix: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    dimensions: tuple[int, ...] = ()


def generation_facts(
    model: Any,
    *,
    task: str,
    path: Path,
    max_model_len: int,
    vocabulary: int,
    max_length: int | None,
) -> ModelFacts:
    """Return the facts of a model that generates.

    Args:
        model: The model, of which only the configs are read.
        task: The task's name.
        path: The model's directory.
        max_model_len: Most tokens of prompt and reply.
        vocabulary: Number of token ids.
        max_length: The setting of this name.
    """
    config = model.generation_config
    ignored = [
        name for name, off in _NOT_APPLIED.items() if getattr(config, name, None) not in (None, off)
    ]
    if ignored:
        names = ", ".join(ignored)
        logger.warning("Replies are greedy or sampled: of generation_config %s is ignored", names)
    defaults = Defaults.of(config, max_length)
    prefix = _decoder_prefix(model)
    return ModelFacts(task, path, max_model_len, vocabulary, defaults, prefix)


def encoder_facts(config: Any, *, task: str, path: Path, max_model_len: int) -> ModelFacts:
    """Return the facts of a model for an encoder task.

    Args:
        config: The model's ``transformers.PreTrainedConfig``.
        task: The task's name.
        path: The model's directory.
        max_model_len: Most tokens of a text.
    """
    text = config.get_text_config()
    return ModelFacts(
        task,
        path,
        max_model_len,
        int(text.vocab_size),
        labels=_labels(config),
        problem_type=getattr(config, "problem_type", None),
        dimensions=_dimensions(config, int(text.hidden_size)),
    )


def _decoder_prefix(model: Any) -> tuple[int, ...] | None:
    """Return the tokens that a decoder begins with; None for a model without an encoder."""
    generation_config, config = model.generation_config, model.config
    if not config.is_encoder_decoder:
        return None
    names = ("decoder_start_token_id", "bos_token_id")
    configs = (generation_config, config)
    tokens = [getattr(each, name, None) for name in names for each in configs]
    start = next((token for token in tokens if token is not None), 0)
    forced = getattr(generation_config, "forced_bos_token_id", None)
    return (start,) if forced is None else (start, forced)


def _labels(config: Any) -> tuple[str, ...]:
    """Return a model's labels in the order of its logits."""
    names: Mapping[Any, str] = config.id2label or {}
    count = int(config.num_labels or len(names))
    return tuple(str(names.get(index, f"LABEL_{index}")) for index in range(count))


def _dimensions(config: Any, size: int) -> tuple[int, ...]:
    """Return the numbers of dimensions that a model was trained for, the full one first.

    The config's keys are those that vLLM reads: ``matryoshka_dimensions``, ``is_matryoshka``.
    """
    named = getattr(config, "matryoshka_dimensions", None)
    if isinstance(named, (list, tuple)):
        return (size, *(int(value) for value in named if 0 < int(value) < size))
    if getattr(config, "is_matryoshka", False):
        return (size, *range(size - 1, 0, -1))
    return (size,)
