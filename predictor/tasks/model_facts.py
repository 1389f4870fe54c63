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

from predictor.checkpoint.lengths import Lengths
from predictor.checkpoint.vocabulary import vocabulary_of
from predictor.tasks.generation_config import Defaults, ignored_keys
from predictor.tasks.generation_overrides import with_overrides

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A loaded model, as its task knows it.

    Attributes:
        task: The task's name.
        path: The model's directory, which has the tokenizer.
        max_model_len: Most tokens of a text, of prompt and reply together, or of a source.
        vocabulary: Number of token ids.
        defaults: Parameters where a request specifies none; None for an encoder task.
        decoder_prefix: Tokens that every reply of an encoder-decoder begins with; None if replies
            continue prompts.
        labels: The labels, in the order of the logits, for classification.
        problem_type: The config's key of this name, for classification.
        dimensions: The numbers of dimensions that embeddings may have, the full one first.
        max_reply_len: Most tokens of a decoder, its prefix included; None without an encoder.
        unbatched: Why each text runs alone and unpadded; None if texts are batched.
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
    max_reply_len: int | None = None
    unbatched: str | None = None


def generation_facts(
    model: Any,
    *,
    task: str,
    path: Path,
    lengths: Lengths,
    vocabulary: int,
    max_length: int | None,
    overrides: Mapping[str, Any] | None = None,
) -> ModelFacts:
    """Return the facts of a model that generates.

    Args:
        model: The model, of which only the configs are read.
        task: The task's name.
        path: The model's directory.
        lengths: The most tokens of a sequence.
        vocabulary: Number of token ids.
        max_length: The setting of this name.
        overrides: Values in place of those of the generation config; see `generation_overrides`.
    """
    config = with_overrides(model.generation_config, overrides or {})
    prefix = _decoder_prefix(model)
    ignored = ignored_keys(config, has_prefix=prefix is not None)
    if ignored:
        logger.warning("Of generation_config these keys are ignored: %s", ", ".join(ignored))
    defaults = Defaults.of(config, max_length, prefix=len(prefix or ()))
    return ModelFacts(
        *(task, path, lengths.source, vocabulary, defaults, prefix), max_reply_len=lengths.reply
    )


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
        vocabulary_of(config),
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
    start = start[0] if isinstance(start, list) else start
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
