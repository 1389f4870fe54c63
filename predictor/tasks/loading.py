"""Makes a task that is ready to be asked from a loaded model and its directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from predictor.engine.opening import Opened
from predictor.errors import CheckpointError, reason_of
from predictor.tasks.generation import Defaults, TextGeneration
from predictor.tasks.head import Head
from predictor.tasks.reading import Reading
from predictor.tasks.sequence_classification import SequenceClassification
from predictor.tasks.tokenizing import Tokenizing

Task = TextGeneration | Reading


class Unsaid(Protocol):
    """What holds where requests say nothing: the settings of these names."""

    @property
    def return_probabilities(self) -> bool:
        """Whether classification tells all probabilities."""
        ...

    @property
    def return_raw_logits(self) -> bool:
        """Whether classification tells all logits."""
        ...


def open_tokenizer(path: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Returns the tokenizer in a model's directory.

    Raises:
        CheckpointError: There is none that can be used.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    # A tokenizer's files may be wrong in any way, and the libraries complain in as many.
    except Exception as error:
        raise CheckpointError(
            f"{path} holds no tokenizer that can be used: {reason_of(error)}"
        ) from None
    return tokenizer


def open_generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    opened: Opened,
    *,
    max_model_len: int,
    max_length: int | None,
) -> TextGeneration:
    """Returns the text-generation task of a loaded model whose engine runs.

    Args:
        model: The model, every part in its place.
        tokenizer: Its tokenizer.
        opened: The engine.
        max_model_len: Most tokens of prompt and reply.
        max_length: The setting of this name.
    """
    return TextGeneration(
        tokenizer,
        opened.engine,
        Defaults.of(model.generation_config, max_length),
        max_model_len=max_model_len,
        vocabulary=opened.vocabulary,
    )


def open_head(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    max_model_len: int,
    unsaid: Unsaid,
) -> Head:
    """Returns what is asked of a model that reads, and what it answers.

    Args:
        task: Its task.
        tokenizer: Its tokenizer.
        config: Its config.
        max_model_len: Most tokens of a text.
        unsaid: What holds where requests say nothing.
    """
    tokenizing = Tokenizing(tokenizer, max_model_len)
    heads: dict[str, Callable[[], Head]] = {
        "sequence_classification": lambda: SequenceClassification(
            tokenizing,
            config,
            return_probabilities=unsaid.return_probabilities,
            return_raw_logits=unsaid.return_raw_logits,
        ),
    }
    return heads[task]()
