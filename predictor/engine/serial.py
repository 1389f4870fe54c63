"""An engine that serves one sequence at a time, through transformers' own `generate`."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from predictor.engine.sampling import Generated, Sampling
from predictor.errors import GenerationFailed

logger = logging.getLogger(__name__)

_WARM_UP_TOKENS = 4


class SerialEngine:
    """One model, one forward pass at a time: Accelerate's hooks are not thread-safe."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        execution_device: int | str,
        prefill_chunk: int,
        threads: int | None = None,
    ) -> None:
        """Takes the model over.

        Args:
            model: A loaded model, whose generation config is replaced: transformers fills what a
                request leaves open from it, sampling included, so it keeps the token ids alone.
            execution_device: Where the first part runs; `model.device` says meta where that part
                is offloaded.
            prefill_chunk: Prompt tokens in one forward pass.
            threads: Most threads to compute with; fewer where ``OMP_NUM_THREADS`` says so.
        """
        if threads is not None:
            torch.set_num_threads(min(threads, torch.get_num_threads()))
        self._model = model
        self._device = torch.device(execution_device)
        self._chunk = prefill_chunk
        self._lock = threading.Lock()
        ids = model.generation_config
        ends = ids.eos_token_id
        self._ends: frozenset[int] = frozenset(
            () if ends is None else [ends] if isinstance(ends, int) else ends
        )
        model.generation_config = _config(
            bos_token_id=ids.bos_token_id, eos_token_id=ends, pad_token_id=_padding(ids)
        )
        torch.seed()

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Generated:
        """Returns the continuation of a prompt; waits for its turn.

        Args:
            prompt: Token ids, at least one.
            sampling: How to continue.

        Raises:
            GenerationFailed: The model raised; the engine goes on with the next request.
        """
        with self._lock, _seeded(sampling.seed, self._device):
            try:
                tokens = self._run(prompt, sampling)
            # Models raise whatever they like; here is the border between requests.
            except Exception as error:
                logger.exception("The model failed on a request of %d tokens", len(prompt))
                raise GenerationFailed(
                    "The model failed on this request; the server's log has the cause."
                ) from error
        reason = "stop" if self._ended(tokens, sampling.stopped) else "length"
        return Generated(tuple(tokens), reason)

    def warm_up(self) -> None:
        """Runs a prefill and a decoding step, so that the first request finds everything in use."""
        token = next(iter(self._ends), 0)
        self.generate([token] * _WARM_UP_TOKENS, Sampling(max_new_tokens=2))

    def _run(self, prompt: Sequence[int], sampling: Sampling) -> list[int]:
        ids = torch.tensor([list(prompt)], dtype=torch.long, device=self._device)
        criteria = StoppingCriteriaList()
        if sampling.stopped is not None:
            criteria.append(_Stop(len(prompt), sampling.stopped))
        with torch.inference_mode():
            generate: Any = self._model.generate
            found = generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self._config(len(prompt), sampling),
                stopping_criteria=criteria,
            )
        return list(found[0, len(prompt) :].tolist())

    def _config(self, prompt_tokens: int, sampling: Sampling) -> GenerationConfig:
        own = self._model.generation_config
        config = _config(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            repetition_penalty=sampling.repetition_penalty,
            bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id,
        )
        if sampling.temperature > 0:
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            config.top_k = sampling.top_k
        if prompt_tokens > self._chunk:
            config.prefill_chunk_size = self._chunk
        return config

    def _ended(self, tokens: list[int], stopped: Callable[[Sequence[int]], bool] | None) -> bool:
        return bool(tokens) and (
            tokens[-1] in self._ends or (stopped is not None and stopped(tokens))
        )


class _Stop(StoppingCriteria):
    def __init__(self, prompt_tokens: int, stopped: Callable[[Sequence[int]], bool]) -> None:
        self._prompt_tokens = prompt_tokens
        self._stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        ended = self._stopped(input_ids[0, self._prompt_tokens :].tolist())
        return torch.tensor([ended], device=input_ids.device)


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _config(**fields: Any) -> GenerationConfig:
    return GenerationConfig(**fields)  # type: ignore[no-untyped-call]


def _padding(ids: Any) -> int | None:
    """A token to pad with; nothing is padded here, but `generate` warns without one."""
    if ids.pad_token_id is not None:
        return int(ids.pad_token_id)
    ends: list[int] | int | None = ids.eos_token_id
    return (ends[0] if ends else None) if isinstance(ends, list) else ends
