"""Text generation: prompts become tokens, tokens become text, with exact counts."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from predictor.engine.generation.encoder_decoder_runner import as_source
from predictor.engine.generation.engine import Engine
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.errors import PredictorError, PromptTooLong, RequestError, reason_of
from predictor.tasks.reply import Reply, as_completion
from predictor.tasks.request import (
    Completion,
    GenerationParameters,
    GenerationRequest,
    Message,
    Piece,
    Prompt,
)


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
    sampling: SamplingParams


class TextGeneration:
    """The task that continues prompts, or writes what an encoder-decoder makes of them."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        engine: Engine,
        defaults: Defaults,
        *,
        max_model_len: int,
        vocabulary: int,
        target: tuple[int, ...] | None = None,
    ) -> None:
        """Puts the parts together.

        Args:
            tokenizer: The model's tokenizer.
            engine: Runs the model.
            defaults: For what requests leave open.
            max_model_len: Most tokens of prompt and reply together.
            vocabulary: How many token ids the model knows.
            target: What a decoder begins with where prompts are read by an encoder; None where
                replies continue prompts.
        """
        self._tokenizer: Any = tokenizer
        self._engine = engine
        self._defaults = defaults
        self._max_model_len = max_model_len
        self._vocabulary = vocabulary
        self._target = target

    def prepare(self, request: GenerationRequest) -> tuple[Job, ...]:
        """Returns what is to be generated for each prompt, in order; does not wait for the model.

        Raises:
            RequestError: A prompt is empty for this tokenizer, a token id is not in the
                vocabulary, or a conversation does not suit the model's chat template.
            PromptTooLong: Prompt, or prompt and reply, exceed `max_model_len`.
        """
        encode = functools.cache(self._encode)  # once for n replies
        jobs = []
        for prompt in request.prompts:
            ids = encode(prompt.text, prompt.parameters.prompt_limit)
            jobs.append(Job(prompt, ids, self._sampling(prompt.parameters, ids)))
        return tuple(jobs)

    async def complete(self, jobs: Sequence[Job]) -> tuple[Completion, ...]:
        """Returns a completion for each job, in order.

        Cancelling this gives the places of all jobs up.

        Raises:
            GenerationFailed: The model failed on one of them.
            EngineBroken: The model failed altogether.
        """
        found: dict[int, Completion] = {}
        async for piece in self._follow(jobs, by_token=False):
            before = self._full_text(jobs[piece.index])
            found[piece.index] = as_completion(piece, before=before)
        return tuple(found[index] for index in range(len(jobs)))

    async def stream(self, jobs: Sequence[Job]) -> AsyncIterator[Piece]:
        """Yields the replies' pieces as they come; closing this gives the places of all jobs up.

        Raises:
            GenerationFailed: The model failed on one of them.
            EngineBroken: The model failed altogether.
        """
        for index, job in enumerate(jobs):
            if job.prompt.parameters.return_full_text:
                yield Piece(index, self._full_text(job), None, len(job.ids), 0)
        async for piece in self._follow(jobs, by_token=True):
            yield piece

    async def _follow(self, jobs: Sequence[Job], *, by_token: bool) -> AsyncIterator[Piece]:
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Piece | PredictorError] = asyncio.Queue()
        keys: dict[int, int] = {}
        try:
            for index, job in enumerate(jobs):
                reply = Reply(
                    index,
                    job.ids if self._target is None else (),
                    self._tokenizer,
                    prompt_tokens=len(job.ids),
                    stops=job.prompt.parameters.stop,
                    scores=job.sampling.logprobs is not None,
                    by_token=by_token,
                    loop=loop,
                    take=inbox.put_nowait,
                )
                keys[index] = self._engine.submit(self._begun(job), job.sampling, reply)
            while keys:
                item = await inbox.get()
                if isinstance(item, PredictorError):
                    raise item
                if item.ending is not None:
                    del keys[item.index]
                yield item
        finally:
            for key in keys.values():
                self._engine.cancel(key)

    def _begun(self, job: Job) -> tuple[int, ...]:
        """What the engine is given of a prompt."""
        return job.ids if self._target is None else (*as_source(job.ids), *self._target)

    def _full_text(self, job: Job) -> str:
        if not job.prompt.parameters.return_full_text:
            return ""
        text, limit = job.prompt.text, job.prompt.parameters.prompt_limit
        if isinstance(text, str) and limit is None:
            return text
        decoded: str = self._tokenizer.decode(list(job.ids), skip_special_tokens=True)
        return decoded

    def _encode(
        self, text: str | tuple[int, ...] | tuple[Message, ...], limit: int | None
    ) -> tuple[int, ...]:
        ids = self._ids(text)[:limit]
        if not ids and self._tokenizer.bos_token_id is not None:
            ids = [self._tokenizer.bos_token_id]
        if not ids:
            raise RequestError("A prompt is empty, and this model has no token to begin with.")
        if len(ids) >= self._longest:
            raise PromptTooLong(
                f"A prompt has {len(ids)} tokens; with a reply of at least one token this model "
                f"takes at most {self._longest} (max_model_len).",
                tokens=len(ids) + 1,
                limit=self._longest,
            )
        if not all(0 <= token < self._vocabulary for token in ids):
            raise RequestError(f"A token id is not between 0 and {self._vocabulary - 1}.")
        return tuple(ids)

    @property
    def _longest(self) -> int:
        """Tokens that prompt and reply share."""
        return self._max_model_len - len(self._target or ())

    def _ids(self, text: str | tuple[int, ...] | tuple[Message, ...]) -> list[int]:
        if isinstance(text, str):
            ids: list[int] = self._tokenizer(text).input_ids
            return ids
        turns = [item for item in text if isinstance(item, Message)]
        return self._chat_ids(turns) if turns else [item for item in text if isinstance(item, int)]

    def _chat_ids(self, turns: Sequence[Message]) -> list[int]:
        if not self._tokenizer.chat_template:
            raise RequestError("This model has no chat template; ask it for completions.")
        try:
            text = self._tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in turns],
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise RequestError(f"The model's chat template refuses: {reason_of(error)}.") from None
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _sampling(self, asked: GenerationParameters, ids: Sequence[int]) -> SamplingParams:
        defaults = self._defaults
        if any(token >= self._vocabulary for token in asked.logit_bias):
            raise RequestError(f"logit_bias names a token id above {self._vocabulary - 1}.")
        return SamplingParams(
            max_new_tokens=self._new_tokens(asked, len(ids)),
            temperature=self._temperature(asked),
            top_p=defaults.top_p if asked.top_p is None else asked.top_p,
            top_k=defaults.top_k if asked.top_k is None else asked.top_k,
            repetition_penalty=defaults.repetition_penalty
            if asked.repetition_penalty is None
            else asked.repetition_penalty,
            presence_penalty=asked.presence_penalty or 0.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            logit_bias=asked.logit_bias,
            seed=asked.seed,
            logprobs=asked.logprobs,
        )

    def _temperature(self, asked: GenerationParameters) -> float:
        if asked.temperature is not None:
            return asked.temperature
        if asked.top_p is not None or asked.top_k is not None:
            return self._defaults.sampling_temperature
        return self._defaults.temperature

    def _new_tokens(self, parameters: GenerationParameters, prompt_tokens: int) -> int:
        room = self._longest - prompt_tokens
        asked = parameters.max_new_tokens
        if asked is None:
            return min(parameters.default_new_tokens or self._defaults.max_new_tokens, room)
        if asked > room:
            raise PromptTooLong(
                f"A prompt of {prompt_tokens} tokens and {asked} new tokens exceed the "
                f"{self._longest} tokens that this model takes (max_model_len).",
                tokens=prompt_tokens + asked,
                limit=self._longest,
            )
        return asked
