"""Makes a task that is ready to be asked from a loaded model and its directory."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel

from predictor.engine.serial import SerialEngine
from predictor.errors import CheckpointError, reason_of
from predictor.tasks.generation import Defaults, TextGeneration


def open_task(
    model: PreTrainedModel,
    path: Path,
    *,
    execution_device: int | str,
    prefill_chunk: int,
    threads: int | None,
    max_model_len: int,
    max_length: int | None,
    trust_remote_code: bool,
) -> TextGeneration:
    """Returns the text-generation task of a loaded model, after a warm-up run.

    Args:
        model: The model, every part in its place.
        path: Its directory, for the tokenizer.
        execution_device: Where its first part runs.
        prefill_chunk: Prompt tokens in one forward pass.
        threads: Threads to compute with; None leaves that to torch.
        max_model_len: Most tokens of prompt and reply.
        max_length: The setting of this name.
        trust_remote_code: Whether a tokenizer that comes as code may run.

    Raises:
        CheckpointError: There is no tokenizer that can be used.
        GenerationFailed: The warm-up failed.
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
    defaults = Defaults.of(model.generation_config, max_length)
    engine = SerialEngine(
        model, execution_device=execution_device, prefill_chunk=prefill_chunk, threads=threads
    )
    engine.warm_up()
    return TextGeneration(tokenizer, engine, defaults, max_model_len=max_model_len)
