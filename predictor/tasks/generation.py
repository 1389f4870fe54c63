"""Text generation: prompts become tokens, tokens become text, with exact counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from predictor.engine.sampling import Generated, Sampling
from predictor.engine.serial import SerialEngine
from predictor.errors import PromptTooLong, RequestError
from predictor.tasks.request import (
    Completion,
    GenerationParameters,
    GenerationRequest,
    Prompt,
)

_CONTEXT_TOKENS = 8
"""Prompt tokens that a reply is decoded with: tokenizers drop a space at the beginning."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is done where a request says nothing: the model's generation config, made explicit.

    Attributes:
        max_new_tokens: Most new tokens.
        temperature: 0 unless the model's config says `do_sample`.
        sampling_temperature: The temperature where a request says `top_p` or `top_k` alone.
        top_p: Probability mass.
        top_k: Tokens to sample from; 0 is all, also where the config says nothing.
        repetition_penalty: 1 is none.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    sampling_temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, config: GenerationConfig, max_length: int | None) -> Defaults:
        """Returns the defaults of a model.

        Args:
            config: The model's generation config.
            max_length: The setting of this name: default `max_new_tokens` where the config has
                none.
        """
        temperature = config.temperature or 1.0
        return cls(
            max_new_tokens=config.max_new_tokens or max_length or cls().max_new_tokens,
            temperature=temperature if config.do_sample else 0.0,
            sampling_temperature=temperature,
            top_p=config.top_p if config.top_p is not None else 1.0,
            top_k=config.top_k or 0,
            repetition_penalty=config.repetition_penalty or 1.0,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """A checked prompt, its tokens, and the whole recipe for its reply."""

    prompt: Prompt
    ids: tuple[int, ...]
    sampling: Sampling


class TextGeneration:
    """The task that continues prompts."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        engine: SerialEngine,
        defaults: Defaults,
        *,
        max_model_len: int,
    ) -> None:
        """Puts the parts together.

        Args:
            tokenizer: The model's tokenizer.
            engine: Runs the model.
            defaults: For what requests leave open.
            max_model_len: Most tokens of prompt and reply together.
        """
        self._tokenizer: Any = tokenizer
        self._engine = engine
        self._defaults = defaults
        self._max_model_len = max_model_len

    def prepare(self, request: GenerationRequest) -> tuple[Job, ...]:
        """Returns what is to be generated for each prompt, in order; does not wait for the model.

        Raises:
            RequestError: A prompt is empty for this tokenizer.
            PromptTooLong: Prompt, or prompt and reply, exceed `max_model_len`.
        """
        encoded = [(prompt, self._encode(prompt)) for prompt in request.prompts]
        return tuple(
            Job(prompt, tuple(ids), self._sampling(prompt.parameters, ids))
            for prompt, ids in encoded
        )

    def complete(self, jobs: Sequence[Job]) -> tuple[Completion, ...]:
        """Returns a completion for each job, in order; blocks until all are done.

        Raises:
            GenerationFailed: The model failed.
        """
        return tuple(
            self._completion(job, self._engine.generate(job.ids, job.sampling)) for job in jobs
        )

    def _encode(self, prompt: Prompt) -> list[int]:
        ids: list[int] = self._tokenizer(prompt.text).input_ids
        if not ids and self._tokenizer.bos_token_id is not None:
            ids = [self._tokenizer.bos_token_id]
        if not ids:
            raise RequestError("A prompt is empty, and this model has no token to begin with.")
        if len(ids) >= self._max_model_len:
            raise PromptTooLong(
                f"A prompt has {len(ids)} tokens; with a reply of at least one token this model "
                f"takes at most {self._max_model_len} (max_model_len).",
                tokens=len(ids) + 1,
                limit=self._max_model_len,
            )
        return ids

    def _sampling(self, asked: GenerationParameters, ids: list[int]) -> Sampling:
        defaults = self._defaults
        return Sampling(
            max_new_tokens=self._new_tokens(asked.max_new_tokens, len(ids)),
            temperature=self._temperature(asked),
            top_p=defaults.top_p if asked.top_p is None else asked.top_p,
            top_k=defaults.top_k if asked.top_k is None else asked.top_k,
            repetition_penalty=defaults.repetition_penalty
            if asked.repetition_penalty is None
            else asked.repetition_penalty,
            seed=asked.seed,
            stopped=self._stop_check(ids, asked.stop) if asked.stop else None,
        )

    def _temperature(self, asked: GenerationParameters) -> float:
        if asked.temperature is not None:
            return asked.temperature
        if asked.top_p is not None or asked.top_k is not None:
            return self._defaults.sampling_temperature
        return self._defaults.temperature

    def _new_tokens(self, asked: int | None, prompt_tokens: int) -> int:
        room = self._max_model_len - prompt_tokens
        if asked is None:
            return min(self._defaults.max_new_tokens, room)
        if asked > room:
            raise PromptTooLong(
                f"A prompt of {prompt_tokens} tokens and max_new_tokens {asked} exceed the "
                f"{self._max_model_len} tokens that this model takes (max_model_len).",
                tokens=prompt_tokens + asked,
                limit=self._max_model_len,
            )
        return asked

    def _stop_check(
        self, ids: list[int], stops: tuple[str, ...]
    ) -> Callable[[Sequence[int]], bool]:
        """Looks at the last tokens alone; a character takes at most four of them."""
        window = 4 * max(len(stop) for stop in stops) + _CONTEXT_TOKENS

        def stopped(tokens: Sequence[int]) -> bool:
            text = self._reply([*ids, *tokens[:-window]], tokens[-window:])
            return any(stop in text for stop in stops)

        return stopped

    def _completion(self, job: Job, generated: Generated) -> Completion:
        prompt, ids = job.prompt, job.ids
        text = self._reply(ids, generated.tokens)
        found = [text.find(stop) for stop in prompt.parameters.stop if stop in text]
        text = text[: min(found)] if found else text
        return Completion(
            text=prompt.text + text if prompt.parameters.return_full_text else text,
            finish_reason="stop" if found else generated.finish_reason,
            prompt_tokens=len(ids),
            completion_tokens=len(generated.tokens),
        )

    def _reply(self, ids: Sequence[int], tokens: Sequence[int]) -> str:
        context = ids[-_CONTEXT_TOKENS:]
        before, after = self._decode(context), self._decode([*context, *tokens])
        return after.removeprefix(before) if after.startswith(before) else self._decode(tokens)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
