"""Makes the task of a loaded model from its directory: tokenizer, configs and defaults."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from predictor.engine.generation.warmup import EngineHandle
from predictor.errors import CheckpointError, reason_of
from predictor.tasks.encoder_task import EncoderTaskSpec
from predictor.tasks.fill_mask import FillMask
from predictor.tasks.generation import Defaults, TextGeneration
from predictor.tasks.question_answering import QuestionAnswering
from predictor.tasks.rerank import Rerank
from predictor.tasks.sentence_layout import read_layout
from predictor.tasks.sequence_classification import SequenceClassification
from predictor.tasks.text_embedding import TextEmbedding
from predictor.tasks.token_classification import TokenClassification
from predictor.tasks.tokenization import Tokenizing

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
class EncoderDefaults:
    """Defaults of the encoder tasks' parameters: the settings of these names."""

    return_probabilities: bool = False
    return_raw_logits: bool = False
    return_offsets_mapping: bool = False


def open_tokenizer(path: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a model's directory.

    Raises:
        CheckpointError: There is no usable one.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    # A tokenizer's files may be wrong in any way, and the libraries raise as many errors.
    except Exception as error:
        raise CheckpointError(
            f"{path} holds no tokenizer that can be used: {reason_of(error).rstrip('.')}."
        ) from None
    return tokenizer


def open_generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    handle: EngineHandle,
    *,
    max_model_len: int,
    max_length: int | None,
) -> TextGeneration:
    """Return the text-generation task of a loaded model whose engine runs.

    Args:
        model: The model, with every part on its device.
        tokenizer: Its tokenizer.
        handle: The engine.
        max_model_len: Most tokens of prompt and reply.
        max_length: The setting of this name.
    """
    config = model.generation_config
    ignored = [
        name for name, off in _NOT_APPLIED.items() if getattr(config, name, None) not in (None, off)
    ]
    if ignored:
        names = ", ".join(ignored)
        logger.warning("Replies are greedy or sampled: of generation_config %s is ignored", names)
    return TextGeneration(
        tokenizer,
        handle.engine,
        Defaults.of(config, max_length),
        max_model_len=max_model_len,
        vocabulary=handle.vocabulary,
        decoder_prefix=_decoder_prefix(model),
    )


def _decoder_prefix(model: PreTrainedModel) -> tuple[int, ...] | None:
    """Return the tokens that a decoder begins with; None for a model without an encoder."""
    generation_config: Any = model.generation_config
    config: Any = model.config
    if not config.is_encoder_decoder:
        return None
    names = ("decoder_start_token_id", "bos_token_id")
    configs = (generation_config, config)
    tokens = [getattr(each, name, None) for name in names for each in configs]
    start = next((token for token in tokens if token is not None), 0)
    forced = getattr(generation_config, "forced_bos_token_id", None)
    return (start,) if forced is None else (start, forced)


def open_encoder_task(
    task: str,
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    max_model_len: int,
    defaults: EncoderDefaults,
) -> EncoderTaskSpec:
    """Return the task of an encoder model.

    Args:
        task: The task's name.
        path: The model's directory.
        tokenizer: The model's tokenizer.
        config: The model's config.
        max_model_len: Most tokens of a text.
        defaults: Parameters where a request specifies none.

    Raises:
        CheckpointError: The model's files lack what the task needs.
    """
    tokenizing = Tokenizing(tokenizer, max_model_len)
    specs: dict[str, Callable[[], EncoderTaskSpec]] = {
        "sequence_classification": lambda: SequenceClassification(
            tokenizing,
            config,
            return_probabilities=defaults.return_probabilities,
            return_raw_logits=defaults.return_raw_logits,
        ),
        "token_classification": lambda: TokenClassification(
            tokenizing, config, return_offsets_mapping=defaults.return_offsets_mapping
        ),
        "question_answering": lambda: QuestionAnswering(tokenizing),
        "fill_mask": lambda: FillMask(tokenizing),
        "text_embedding": lambda: TextEmbedding(tokenizing, config, read_layout(path)),
        "rerank": lambda: Rerank(tokenizing, config),
    }
    return specs[task]()
