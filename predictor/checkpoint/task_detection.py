"""The task of a model, detected from its files, and the auto class of transformers that builds it.

A config names the head that the checkpoint was trained with in ``architectures``. Any other head
would be new and untrained, so a task that does not suit the head is refused. Whether a task's
engine can run the model is left to `profiling` and `engine`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig

from predictor.errors import CheckpointError
from predictor.private.transformers import class_names

_SENTENCE_TRANSFORMERS = "modules.json"


@dataclass(frozen=True, slots=True)
class _Kind:
    """The models of a task in transformers.

    Attributes:
        factory: The auto class that builds such a model.
        table: The table of `modeling_auto` with the model classes by model type.
        title: The name of such a model in a sentence.
    """

    factory: str
    table: str
    title: str


_SEQUENCES = _Kind(
    "AutoModelForSequenceClassification",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "sequence classifier",
)
_KINDS = {
    "text_generation": _Kind(
        "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "causal language model"
    ),
    "text2text_generation": _Kind(
        "AutoModelForSeq2SeqLM",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "encoder-decoder language model",
    ),
    "sequence_classification": _SEQUENCES,
    "rerank": _SEQUENCES,
    "token_classification": _Kind(
        "AutoModelForTokenClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        "token classifier",
    ),
    "question_answering": _Kind(
        "AutoModelForQuestionAnswering",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        "question answering model",
    ),
    "fill_mask": _Kind(
        "AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", "masked language model"
    ),
    "text_embedding": _Kind("AutoModel", "MODEL_MAPPING_NAMES", "model without a head"),
}

GENERATING = frozenset({"text_generation", "text2text_generation"})
"""The tasks that generate their answer token by token."""


def title_of(task: str) -> str:
    """Return the name of a model for this task in a sentence: ``causal language model``."""
    return _KINDS[task].title


def factory_of(task: str, config: PreTrainedConfig) -> Any:
    """Return the auto class of transformers that builds a model for this task."""
    is_encoder = any(name.endswith("EncoderModel") for name in config.architectures or ())
    if task == "text_embedding" and (config.is_encoder_decoder or is_encoder):
        return transformers.AutoModelForTextEncoding  # its encoder alone
    return getattr(transformers, _KINDS[task].factory)


def find_task(config: PreTrainedConfig, path: Path, requested: str | None) -> str:
    """Return the task that a model is served for.

    Args:
        config: The model's config.
        path: The model's directory, or its ``config.json`` alone.
        requested: The task in the settings, or None to detect it.

    Raises:
        CheckpointError: The model suits no task, or not the requested one.
    """
    classes = [name for name in config.architectures or () if "Model" in name or "For" in name]
    own_code: dict[str, str] = getattr(config, "auto_map", None) or {}
    if requested is not None:
        if not own_code:
            _check(classes, requested, path)
        return requested
    if (path / _SENTENCE_TRANSFORMERS).is_file():
        return "text_embedding"
    tasks = [_task_of_head(name, config) for name in classes]
    tasks += [task for task, kind in _KINDS.items() if kind.factory in own_code]
    heads = [name for name in classes if "For" in name]
    if heads and not own_code and not any(tasks):
        raise CheckpointError(
            f"{path} describes a {heads[0]}, which is made for no task that can be served; "
            f"they are {', '.join(_KINDS)}."
        )
    return next(filter(None, tasks), None) or _task_of_base(config, classes)


def _task_of_head(name: str, config: PreTrainedConfig) -> str | None:
    """Return the task of a model class with a head; None for other classes."""
    tasks = [task for task in _KINDS if task != "text_embedding" and name in _classes(task)]
    if "sequence_classification" in tasks:
        # A cross-encoder has one label: how well two texts match.
        return "rerank" if config.num_labels == 1 else "sequence_classification"
    if "text2text_generation" in tasks and config.is_encoder_decoder:
        return "text2text_generation"
    return tasks[0] if tasks else None


def _task_of_base(config: PreTrainedConfig, classes: list[str]) -> str:
    """Return the task of a model whose config names no known head.

    Some decoders were published under the name of their base model (``BloomModel``). They generate,
    unless the same model type also has a masked language model.
    """
    if config.is_encoder_decoder:
        return "text2text_generation"
    generates = config.model_type in class_names(_KINDS["text_generation"].table)
    is_bidirectional = config.model_type in class_names(_KINDS["fill_mask"].table)
    is_encoder = bool(classes) and (is_bidirectional or not generates)
    return "text_embedding" if is_encoder else "text_generation"


def _check(classes: list[str], task: str, path: Path) -> None:
    """Refuse a task that the model's head is not for.

    Every model suits ``text_embedding``: vectors are made of the states below the head.
    """
    heads = [name for name in classes if "For" in name or name.endswith("LMHeadModel")]
    if task != "text_embedding" and heads and not _classes(task).intersection(heads):
        raise CheckpointError(
            f"{path} describes a {heads[0]}, which is no {title_of(task)} (task {task})."
        )


def _classes(task: str) -> set[str]:
    """Return the names of all model classes for a task."""
    return {name for names in class_names(_KINDS[task].table).values() for name in names}
