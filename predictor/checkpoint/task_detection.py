"""The task of a model, detected from its files, and the auto class of transformers that builds it.

A config names the head that the checkpoint was trained with in ``architectures``. Any other head
would be new and untrained, so a task that does not suit the head is refused. A model is served if
an auto class of its task makes a model of the config. The class in ``architectures`` may have a
name of its own (``MyLlamaForCausalLM``): then its ending names the head. Whether a task's engine
can run the model is left to `profiling` and `engine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig

from predictor.errors import CheckpointError
from predictor.private.model_classes import class_made_by
from predictor.private.transformers import class_names

_SENTENCE_TRANSFORMERS = "modules.json"

_WRAPPERS = "AutoModelForMultimodalLM"
_WRAPPERS_TABLE = "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"
"""The auto class of models that take text and images, video or sound, and answer in text; and its
table."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """The models of a task in transformers.

    Attributes:
        factory: The auto class that builds such a model.
        table: The table of `modeling_auto` with the model classes by model type.
        title: The name of such a model in a sentence.
        has_wrappers: Whether wrappers of such a model, which take images or sound too, are served
            for their text.
    """

    factory: str
    table: str
    title: str
    has_wrappers: bool = False

    @property
    def factories(self) -> tuple[str, ...]:
        """Return the auto classes that build such a model, the best first."""
        return (self.factory, _WRAPPERS) if self.has_wrappers else (self.factory,)

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Return the names of the model classes by model type."""
        names = class_names(self.table)
        if not self.has_wrappers:
            return names
        wrappers = class_names(_WRAPPERS_TABLE)
        return {key: (*names.get(key, ()), *wrappers.get(key, ())) for key in {**names, **wrappers}}


_SEQUENCES = _Kind(
    "AutoModelForSequenceClassification",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "sequence classifier",
)
_KINDS = {
    "text_generation": _Kind(
        "AutoModelForCausalLM",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "causal language model",
        has_wrappers=True,
    ),
    "text2text_generation": _Kind(
        "AutoModelForSeq2SeqLM",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "encoder-decoder language model",
        has_wrappers=True,
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

_POOLING = "pooling"
"""The setting of a task that is detected, and makes vectors or classes of texts and tokens."""


def title_of(task: str) -> str:
    """Return the name of a model for this task in a sentence: ``causal language model``."""
    return _KINDS[task].title


def factory_of(task: str, config: PreTrainedConfig) -> Any:
    """Return the auto class of transformers that builds a model for this task."""
    is_encoder = any(name.endswith("EncoderModel") for name in config.architectures or ())
    if task == "text_embedding" and (config.is_encoder_decoder or is_encoder):
        return transformers.AutoModelForTextEncoding  # its encoder alone
    return getattr(transformers, _KINDS[task].factory)


def classes_for(task: str, config: PreTrainedConfig) -> list[tuple[Any, PreTrainedConfig]]:
    """Return the model classes for a task, each with its config.

    The class that the config names in ``architectures`` comes first, as its names are those of the
    stored weights; then a class with the same head; then those of the auto classes in order.
    """
    factories = [getattr(transformers, name) for name in _KINDS[task].factories]
    if task == "text_embedding":
        factories = [factory_of(task, config)]
    classes = [made for each in factories if (made := class_made_by(each, config)) is not None]
    names = config.architectures or ()
    heads = {_head(name) for name in names} - {""}

    def rank(made: tuple[Any, PreTrainedConfig]) -> tuple[bool, bool]:
        name = made[0].__name__
        return name not in names, _head(name) not in heads

    return sorted(classes, key=rank)


def find_task(config: PreTrainedConfig, path: Path, requested: str | None) -> str:
    """Return the task that a model is served for.

    Args:
        config: The model's config.
        path: The model's directory, or its ``config.json`` alone.
        requested: The task in the settings, or None to detect it.

    Raises:
        CheckpointError: The model suits no task, or not the requested one.
    """
    if requested == _POOLING:
        task = find_task(config, path, None)
        if task in (*GENERATING, "fill_mask"):
            raise CheckpointError(
                f"{path} describes a model for {task}, which pools nothing (--runner or --task "
                "pooling); --task text_embedding serves the vectors."
            )
        return task
    classes = [name for name in config.architectures or () if "Model" in name or "For" in name]
    own_code: dict[str, str] = getattr(config, "auto_map", None) or {}
    if requested is not None:
        if not own_code:
            _check(classes, requested, config, path)
        return requested
    if (path / _SENTENCE_TRANSFORMERS).is_file():
        return "text_embedding"
    tasks = [_task_of_head(name, config) for name in classes]
    tasks += [task for task, kind in _KINDS.items() if kind.factory in own_code]
    heads = [name for name in classes if "For" in name and _is_head_known(name)]
    if heads and not own_code and not any(tasks):
        raise CheckpointError(
            f"{path} describes a {heads[0]}, which transformers makes for no task that can be "
            f"served ({', '.join(_KINDS)}); of a model of texts, --task text_embedding serves the "
            "vectors."
        )
    return next(filter(None, tasks), None) or _task_of_base(config, classes)


def _task_of_head(name: str, config: PreTrainedConfig) -> str | None:
    """Return the task of a model class with a head; None for other classes."""
    tasks = [task for task in _KINDS if task != "text_embedding" and _suits(name, task, config)]
    if "sequence_classification" in tasks:
        # A cross-encoder has one label: how well two texts match.
        return "rerank" if config.num_labels == 1 else "sequence_classification"
    if "text2text_generation" in tasks and config.is_encoder_decoder:
        return "text2text_generation"
    return tasks[0] if tasks else None


def _suits(name: str, task: str, config: PreTrainedConfig) -> bool:
    """Return whether a model class is for a task.

    A class that transformers does not have is, if its head is that of a class for the task.
    """
    classes = _KINDS[task].classes
    if hasattr(transformers, name):
        return any(name in names for names in classes.values())
    own = classes.get(config.model_type, ())
    heads = {_head(each) for names in classes.values() for each in names}
    is_alike = _head(name) in {_head(each) for each in own}
    return is_alike or (bool(own) and _head(name) in heads - {""})


def _head(name: str) -> str:
    """Return the ending of a class's name that names its head: ``ForCausalLM``; "" without one."""
    _, is_headed, head = name.rpartition("For")
    if is_headed:
        return f"For{head}"
    return "LMHeadModel" if name.endswith("LMHeadModel") else ""


def _is_head_known(name: str) -> bool:
    """Return whether a class of transformers has the head that a class's name ends with."""
    head = _head(name)
    return bool(head) and any(each.endswith(head) for each in dir(transformers))


def _task_of_base(config: PreTrainedConfig, classes: list[str]) -> str:
    """Return the task of a model whose config names no known head.

    Some decoders were published under the name of their base model (``BloomModel``). They generate,
    unless the same model type also has a masked language model. The base of a wrapper
    (``LlavaModel``) has no head, so it makes vectors.
    """
    if config.is_encoder_decoder:
        return "text2text_generation"
    generates = config.model_type in class_names(_KINDS["text_generation"].table)
    is_bidirectional = config.model_type in _KINDS["fill_mask"].classes
    is_encoder = bool(classes) and (is_bidirectional or not generates)
    return "text_embedding" if is_encoder else "text_generation"


def _check(classes: list[str], task: str, config: PreTrainedConfig, path: Path) -> None:
    """Refuse a task that the model's head is not for.

    Every model suits ``text_embedding``: vectors are made of the states below the head.
    """
    heads = [name for name in classes if _is_head_known(name)]
    if task == "text_embedding" or not heads:
        return
    if not any(_suits(name, task, config) for name in heads):
        raise CheckpointError(
            f"{path} describes a {heads[0]}, which is no {title_of(task)} (--task {task}); "
            "--task text_embedding serves its vectors."
        )
