"""What a model was made for: its task, found in its files, and transformers' class for that.

The head that a checkpoint was trained with is what its config names in ``architectures``; another
would be new and untrained, so what does not suit the model is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto

from predictor.errors import CheckpointError

_SENTENCE_TRANSFORMERS = "modules.json"


@dataclass(frozen=True, slots=True)
class _Kind:
    """How transformers knows the models of a task.

    Attributes:
        factory: The auto class that makes them.
        mapping: The table of `modeling_auto` with their classes by model type.
        title: What they are called in a sentence.
    """

    factory: str
    mapping: str
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
"""The tasks whose answer is made token by token."""


def title_of(task: str) -> str:
    """Returns what a model for this task is, in words: ``causal language model``."""
    return _KINDS[task].title


def factory_of(task: str, config: PreTrainedConfig) -> Any:
    """Returns the auto class of transformers that makes such models for this task."""
    is_encoder = any(name.endswith("EncoderModel") for name in config.architectures or ())
    if task == "text_embedding" and (config.is_encoder_decoder or is_encoder):
        return transformers.AutoModelForTextEncoding  # its encoder alone
    return getattr(transformers, _KINDS[task].factory)


def find_task(config: PreTrainedConfig, path: Path, asked: str | None) -> str:
    """Returns the task that a model is to be served for.

    Args:
        config: The model's.
        path: Its directory, or its ``config.json`` alone.
        asked: The task that was asked for; None asks for what the model was made for.

    Raises:
        CheckpointError: The model was made for none of the tasks, or not for the one asked for.
    """
    named = [name for name in config.architectures or () if "Model" in name or "For" in name]
    own_code: dict[str, str] = getattr(config, "auto_map", None) or {}
    if asked is not None:
        if not own_code:
            _check(named, asked, path)
        return asked
    if (path / _SENTENCE_TRANSFORMERS).is_file():
        return "text_embedding"
    found = [_of_head(name, config) for name in named]
    found += [task for task, kind in _KINDS.items() if kind.factory in own_code]
    heads = [name for name in named if "For" in name]
    if heads and not own_code and not any(found):
        raise CheckpointError(
            f"{path} describes a {heads[0]}, which is made for no task that can be served; "
            f"they are {', '.join(_KINDS)}."
        )
    return next(filter(None, found), None) or _of_base(config, named)


def _of_head(name: str, config: PreTrainedConfig) -> str | None:
    """The task of a model class with a head; None for others."""
    found = [task for task in _KINDS if task != "text_embedding" and name in _classes(task)]
    if "sequence_classification" in found:
        # One number for a pair of texts is how well they match (a cross-encoder).
        return "rerank" if config.num_labels == 1 else "sequence_classification"
    if "text2text_generation" in found and config.is_encoder_decoder:
        return "text2text_generation"
    return found[0] if found else None


def _of_base(config: PreTrainedConfig, named: list[str]) -> str:
    """The task of a model of which no head is known.

    Decoders were published by the name of their base model too (``BloomModel``) and generate; a
    model that was made to see both sides of a token does not.
    """
    if config.is_encoder_decoder:
        return "text2text_generation"
    generates = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    sees_both = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "text_embedding" if named and (sees_both or not generates) else "text_generation"


def _check(named: list[str], asked: str, path: Path) -> None:
    """Refuses a task that the model's head is not for.

    Any model can be asked for embeddings, which are made of what is below the head.
    """
    heads = [name for name in named if "For" in name or name.endswith("LMHeadModel")]
    if asked != "text_embedding" and heads and not _classes(asked).intersection(heads):
        raise CheckpointError(
            f"{path} describes a {heads[0]}, which is no {title_of(asked)} (task {asked})."
        )


def _classes(task: str) -> set[str]:
    """The names of all model classes for a task."""
    mapping: dict[str, Any] = getattr(modeling_auto, _KINDS[task].mapping)
    return {
        name
        for names in mapping.values()
        for name in ([names] if isinstance(names, str) else names)
    }
