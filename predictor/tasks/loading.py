"""Opens the task of a model from its facts: with its tokenizer, on an engine that runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictor.checkpoint.placeholders import refuse_placeholder
from predictor.errors import CheckpointError, reason_of
from predictor.private.tokenizers import tokenizer_class
from predictor.settings import Settings
from predictor.tasks.chat_template import adopt_template
from predictor.tasks.encoder_task import EncoderTask, EncoderTaskSpec
from predictor.tasks.fill_mask import FillMask
from predictor.tasks.generation import TextGeneration
from predictor.tasks.messages import ChatOptions
from predictor.tasks.model_facts import ModelFacts
from predictor.tasks.question_answering import QuestionAnswering
from predictor.tasks.rerank import Rerank
from predictor.tasks.sentence_layout import read_layout
from predictor.tasks.sequence_classification import SequenceClassification
from predictor.tasks.structured_output import DEFAULT_LIMITS, GrammarLimits
from predictor.tasks.text_embedding import TextEmbedding
from predictor.tasks.token_classification import TokenClassification
from predictor.tasks.tokenization import Tokenizing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

_TASKS_OF = {
    "return_probabilities": ("sequence_classification",),
    "return_raw_logits": ("sequence_classification",),
    "return_offsets_mapping": ("token_classification",),
}
"""Switches, and the tasks for which they change the answer."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What tasks take of the settings: those of these names."""

    return_probabilities: bool = False
    return_raw_logits: bool = False
    return_offsets_mapping: bool = False
    truncate: bool = False
    disable_special_tokens: bool = False
    max_grammar_size: int = DEFAULT_LIMITS.size
    grammar_memory: int = DEFAULT_LIMITS.memory
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    split_special_tokens: bool = False
    max_tokens_in_flight: int = 2 * 1024**2

    @classmethod
    def of(cls, settings: Settings) -> TaskOptions:
        """Return the options that the settings make."""
        return cls(**{each.name: getattr(settings, each.name) for each in fields(cls)})


def open_task(
    facts: ModelFacts,
    engine: Any,
    *,
    options: TaskOptions,
    tokenizer: PreTrainedTokenizerBase,
) -> TextGeneration | EncoderTask:
    """Return the task of a model whose engine runs.

    Args:
        facts: The model's facts.
        engine: A `SequenceGenerator` or a `TextEncoder`, as the task needs.
        options: The settings of tasks.
        tokenizer: The model's tokenizer.

    Raises:
        CheckpointError: The model's files lack what the task needs.
    """
    _warn_of_unused(options, facts.task)
    if facts.defaults is None:
        return EncoderTask(_encoder_spec(facts, tokenizer, options), engine)
    return TextGeneration(
        tokenizer,
        engine,
        facts.defaults,
        max_model_len=facts.max_model_len,
        vocabulary=facts.vocabulary,
        decoder_prefix=facts.decoder_prefix,
        max_reply_len=facts.max_reply_len,
        grammar_limits=GrammarLimits(options.max_grammar_size, options.grammar_memory),
        chat=ChatOptions(
            options.tool_call_parser, options.reasoning_parser, options.split_special_tokens
        ),
        max_tokens_in_flight=options.max_tokens_in_flight,
    )


def _warn_of_unused(options: TaskOptions, task: str) -> None:
    """Log the switches that are on and change nothing for a task."""
    for name, tasks in _TASKS_OF.items():
        if getattr(options, name) and task not in tasks:
            of = " and ".join(tasks)
            logger.warning("--%s changes nothing: it is for %s, not for %s", name, of, task)


def open_checked_tokenizer(
    path: Path, facts: ModelFacts | None, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a model's directory, which has what the model's task needs.

    Args:
        path: The directory.
        facts: The facts of a model with an encoder task; None for others.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        CheckpointError: There is no usable one, or it lacks what the task needs.
    """
    tokenizer = open_tokenizer(path, trust_remote_code=trust_remote_code)
    if facts is not None:
        _encoder_spec(facts, tokenizer, TaskOptions())
    return tokenizer


def open_tokenizer(path: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a model's directory.

    Raises:
        CheckpointError: There is no usable one.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = tokenizer_class(
            with_torch=trust_remote_code
        ).from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    # A tokenizer's files may be wrong in any way, and the libraries raise as many errors.
    except Exception as error:
        _refuse_placeholders(_files_like_tokenizers(path))
        raise CheckpointError(
            f"{path} holds no tokenizer that can be used: {reason_of(error).rstrip('.')}."
        ) from None
    _refuse_placeholders(_own_files(tokenizer, path))
    adopt_template(tokenizer, path)
    return tokenizer


def _refuse_placeholders(files: Iterable[Path]) -> None:
    for file in files:
        refuse_placeholder(file)


def _own_files(tokenizer: PreTrainedTokenizerBase, path: Path) -> list[Path]:
    """Return the files that a tokenizer was made of.

    Many classes make a vocabulary of any text, even of none, and raise no error.
    """
    if tokenizer.is_fast and (path / "tokenizer.json").is_file():
        return [path / "tokenizer.json"]
    files = [path / name for name in tokenizer.vocab_files_names.values()]
    return [file for file in files if file.is_file()]


def _files_like_tokenizers(path: Path) -> list[Path]:
    """Return a directory's files of vocabularies and of models of sentencepiece, by their names."""
    names = ("*token*", "*vocab*", "merges.txt", "*.model", "*.spm")
    return sorted({file for name in names for file in path.glob(name) if file.is_file()})


def _encoder_spec(
    facts: ModelFacts, tokenizer: PreTrainedTokenizerBase, options: TaskOptions
) -> EncoderTaskSpec:
    takes_pairs = facts.task in ("question_answering", "rerank")
    tokenizing = Tokenizing(
        tokenizer,
        facts.max_model_len,
        truncates=options.truncate,
        add_special_tokens=takes_pairs or not options.disable_special_tokens,
    )
    specs: dict[str, Callable[[], EncoderTaskSpec]] = {
        "sequence_classification": lambda: SequenceClassification(
            tokenizing,
            facts,
            return_probabilities=options.return_probabilities,
            return_raw_logits=options.return_raw_logits,
        ),
        "token_classification": lambda: TokenClassification(
            tokenizing, facts, return_offsets_mapping=options.return_offsets_mapping
        ),
        "question_answering": lambda: QuestionAnswering(tokenizing),
        "fill_mask": lambda: FillMask(tokenizing),
        "text_embedding": lambda: TextEmbedding(tokenizing, facts, read_layout(facts.path)),
        "rerank": lambda: Rerank(tokenizing, facts),
    }
    return specs[facts.task]()
