"""Keys that name the task of a model, in the words of TorchServe's examples.

They are ``mode`` of its Transformers example, ``task_name`` and ``task`` of those for DeepSpeed-MII
and pipelines. If those name a task that is not served, the import ends: the archive would be served
as something else.
"""

from __future__ import annotations

from typing import Any

from predictor.errors import ArchiveError
from predictor.migration.mapping import KeyMapping, Rule, dropped, kept
from predictor.migration.torchserve_archive import TorchServeArchive
from predictor.sentences import quote

_TASKS = {
    **dict.fromkeys(("text_generation", "conversational", "chat"), "text_generation"),
    **dict.fromkeys(
        ("text2text_generation", "summarization", "translation"), "text2text_generation"
    ),
    **dict.fromkeys(
        ("sequence_classification", "text_classification", "sentiment_analysis"),
        "sequence_classification",
    ),
    **dict.fromkeys(("token_classification", "ner"), "token_classification"),
    "question_answering": "question_answering",
    "fill_mask": "fill_mask",
    **dict.fromkeys(("feature_extraction", "text_embedding"), "text_embedding"),
    **dict.fromkeys(("rerank", "text_ranking"), "rerank"),
}
"""Tasks by their names in pipelines and examples, with the setting for each."""


def _map_mode(value: Any, _: TorchServeArchive) -> KeyMapping:
    """Return the mapping of ``mode``, which is a task or anything else of a handler's own."""
    task = _task_of(value)
    if task is None:
        return dropped("all models are asked for text; which replies, a request says")
    return kept(f"`task` {task}", task=task)


def _task_rule(key: str) -> Rule:
    """Return the rule for a key that names a task.

    The rule raises an `ArchiveError` that names the key if no such task is served.
    """

    def rule(value: Any, _: TorchServeArchive) -> KeyMapping:
        if not isinstance(value, str) or not value.strip():
            return dropped("it names no task")
        task = _task_of(value)
        if task is not None:
            return kept(f"`task` {task}", task=task)
        raise ArchiveError(f"{key} names the task {quote(value)}, which is not served here.")

    return rule


def _task_of(value: Any) -> str | None:
    name = value.strip().lower().replace("-", "_") if isinstance(value, str) else ""
    return _TASKS.get("translation" if name.startswith("translation_") else name)


RULES: dict[str, Rule] = {
    "mode": _map_mode,
    **{key: _task_rule(key) for key in ("task", "task_name")},
}
"""The rules for these keys, in whatever file they are."""
