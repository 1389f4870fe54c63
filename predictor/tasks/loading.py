"""Makes a task that is ready to be asked from a loaded model and its directory."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel

from predictor.engine.opening import Opened
from predictor.errors import CheckpointError, reason_of
from predictor.tasks.generation import Defaults, TextGeneration


def open_task(
    model: PreTrainedModel,
    path: Path,
    opened: Opened,
    *,
    max_model_len: int,
    max_length: int | None,
    trust_remote_code: bool,
) -> TextGeneration:
    """Returns the text-generation task of a loaded model whose engine runs.

    Args:
        model: The model, every part in its place.
        path: Its directory, for the tokenizer.
        opened: The engine.
        max_model_len: Most tokens of prompt and reply.
        max_length: The setting of this name.
        trust_remote_code: Whether a tokenizer that comes as code may run.

    Raises:
        CheckpointError: There is no tokenizer that can be used.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    # A tokenizer's files may be wrong in any way, and the libraries complain in as many.
    except Exception as error:
        raise CheckpointError(
            f"{path} holds no tokenizer that can be used: {reason_of(error)}"
        ) from None
    return TextGeneration(
        tokenizer,
        opened.engine,
        Defaults.of(model.generation_config, max_length),
        max_model_len=max_model_len,
        vocabulary=opened.vocabulary,
    )
