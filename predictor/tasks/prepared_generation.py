"""The replies to a request for generation: from the engine's tokens to completions or pieces.

A stop sequence is cut in `predictor.tasks.detokenizer`, which `predictor.tasks.reply` feeds in the
thread that receives the engine's results.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from predictor.bulk import is_bulk
from predictor.engine.generation.sampling_params import (
    SamplingParams,
    SequenceGenerator,
    as_source,
)
from predictor.errors import PredictorError
from predictor.tasks.answers import Completion, Piece
from predictor.tasks.messages import ReplyForm
from predictor.tasks.prompt_scores import ScoredPrompt
from predictor.tasks.reply import Reply, Stops, as_completion
from predictor.tasks.request import Grammar, Prompt
from predictor.tasks.structured_output import StructuredOutput


@dataclass(frozen=True, slots=True)
class Job:
    """A checked prompt and the complete parameters of its reply.

    Attributes:
        prompt: The prompt.
        ids: Its tokens.
        sampling: The sampling parameters.
        decoder_prefix: Tokens that a decoder begins with; None if the reply continues the prompt.
        form: How the reply is read as a message; None if it is text.
        special_stops: Stop strings that are special tokens, by their ids.
        stop_tokens: Special tokens that stop strings contain beside other text, with their ids.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    sampling: SamplingParams
    decoder_prefix: tuple[int, ...] | None = None
    form: ReplyForm | None = None
    special_stops: Mapping[int, str] = field(default_factory=dict)
    stop_tokens: Mapping[str, int] = field(default_factory=dict)


class ScoredOpenings:
    """Puts the log probabilities of a prompt before the streamed replies to it.

    Of the replies to one prompt, one alone has them; the pieces of the others wait for it.
    """

    def __init__(
        self, jobs: Sequence[Job], opening: Callable[[int, ScoredPrompt | None], Piece]
    ) -> None:
        """Create it for the replies of one request.

        Args:
            jobs: The prompts.
            opening: Returns the piece before the first one of a reply.
        """
        self._jobs, self._opening = jobs, opening
        self._prompts: dict[int, ScoredPrompt] = {}
        self._waiting: dict[int, list[Piece]] = {}
        self._open: set[int] = set()

    def after(self, piece: Piece) -> Iterator[Piece]:
        """Yield the pieces that may go out after a piece has come."""
        job = self._jobs[piece.index]
        if not _is_scored(job):
            yield piece
            return
        waiting = self._waiting.setdefault(id(job.ids), [])
        waiting.append(replace(piece, prompt=None))
        if piece.prompt is not None:
            self._prompts[id(job.ids)] = piece.prompt
        prompt = self._prompts.get(id(job.ids))
        while prompt is not None and waiting:
            ready = waiting.pop(0)
            if ready.index not in self._open:
                self._open.add(ready.index)
                yield self._opening(ready.index, prompt)
            yield ready


class PreparedGeneration:
    """The prompts of a request as tokens; see `predictor.tasks.task.PreparedRequest`.

    Attributes:
        jobs: One for each prompt, in order.
        text_tokens: None that completions do not count.
    """

    text_tokens = 0

    def __init__(
        self,
        jobs: Sequence[Job],
        tokenizer: Any,
        engine: SequenceGenerator,
        structured: StructuredOutput,
        scope: bytes = b"",
    ) -> None:
        """Create the request of a `TextGeneration`, with its tokenizer and engine.

        Args:
            jobs: The prompts.
            tokenizer: The model's tokenizer.
            engine: Runs the model.
            structured: Compiles the grammars that replies must follow.
            scope: The request's scope in the prefix cache.
        """
        self.jobs = jobs
        self._structured, self._scope = structured, scope
        self._tokenizer = tokenizer
        self._engine = engine

    async def check(self) -> None:
        """Compile the grammars of the replies, each once; see `PreparedRequest.check`.

        Raises:
            RequestError: A grammar is faulty, too large or too complex.
        """
        compiled: dict[tuple[Grammar, str], str] = {}
        jobs = []
        for job in self.jobs:
            grammar, lead = job.prompt.parameters.grammar, job.form.lead if job.form else ""
            if grammar is None:
                jobs.append(job)
                continue
            if (grammar, lead) not in compiled:
                compiled[grammar, lead] = await self._structured.compile(grammar, lead)
            sampling = replace(job.sampling, grammar=compiled[grammar, lead])
            jobs.append(replace(job, sampling=sampling))
        self.jobs = jobs

    async def complete(self) -> tuple[Completion, ...]:
        """Return a completion for each prompt, in order. Cancelling this cancels the sequences.

        Raises:
            GenerationFailed: The model failed on one of them.
            EngineBroken: The model failed altogether.
        """
        completions: dict[int, Completion] = {}
        scored: dict[int, ScoredPrompt] = {}
        async for piece in self._follow(by_token=False):
            job = self.jobs[piece.index]
            if piece.prompt is not None:
                scored[id(job.ids)] = piece.prompt
            completions[piece.index] = as_completion(piece, before=self._full_text(job))
        return tuple(
            replace(completions[index], prompt=scored.get(id(job.ids)))
            for index, job in enumerate(self.jobs)
        )

    async def stream(self) -> AsyncGenerator[Piece, None]:
        """Yield the replies' pieces as they come. Closing this cancels the sequences.

        Raises:
            GenerationFailed: The model failed on one of them.
            EngineBroken: The model failed altogether.
        """
        for index, job in enumerate(self.jobs):
            if job.prompt.parameters.return_full_text and not _is_scored(job):
                yield self._opening(index, None)
        scored = ScoredOpenings(self.jobs, self._opening)
        async for piece in self._follow(by_token=True):
            for ready in scored.after(piece):
                yield ready

    async def _follow(self, *, by_token: bool) -> AsyncGenerator[Piece, None]:
        inbox: asyncio.Queue[Piece | PredictorError] = asyncio.Queue()
        keys: dict[int, int] = {}
        request = self._engine.new_request()
        prompts: dict[tuple[int, tuple[int, ...] | None], array[int]] = {}
        try:
            for index, job in enumerate(self.jobs):
                prompt = id(job.ids), job.decoder_prefix
                if prompt not in prompts:  # once for n replies, which share their tokens
                    prompts[prompt] = _engine_prompt(job)
                reply = self._reply(index, job, inbox, by_token=by_token)
                keys[index] = self._engine.submit(
                    prompts[prompt],
                    job.sampling,
                    reply,
                    request=request,
                    scope=self._scope,
                    is_bulk=is_bulk(),
                )
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

    def _reply(
        self, index: int, job: Job, inbox: asyncio.Queue[Piece | PredictorError], *, by_token: bool
    ) -> Reply:
        given = job.prompt.parameters
        return Reply(
            index,
            job.ids if job.decoder_prefix is None else (),
            self._tokenizer,
            prompt_tokens=len(job.ids),
            stops=Stops(given.stop, given.stop_token_ids, job.special_stops, job.stop_tokens),
            form=job.form,
            scores=job.sampling.logprobs is not None,
            scores_prompt=job.sampling.prompt_logprobs is not None,
            by_token=by_token,
            loop=asyncio.get_running_loop(),
            take=inbox.put_nowait,
        )

    def _opening(self, index: int, prompt: ScoredPrompt | None) -> Piece:
        """Return the piece of a streamed reply that has its prompt."""
        job = self.jobs[index]
        return Piece(index, self._full_text(job), None, len(job.ids), 0, prompt=prompt)

    def _full_text(self, job: Job) -> str:
        """Return the prompt's text if the reply begins with it, else an empty text."""
        if not job.prompt.parameters.return_full_text:
            return ""
        text, limit = job.prompt.text, job.prompt.parameters.prompt_limit
        if isinstance(text, str) and limit is None:
            return text
        decoded: str = self._tokenizer.decode(list(job.ids), skip_special_tokens=True)
        return decoded


def _is_scored(job: Job) -> bool:
    return job.prompt.parameters.prompt_logprobs is not None


def _engine_prompt(job: Job) -> array[int]:
    """Return a prompt as the engine takes it, with 4 bytes for each token."""
    if job.decoder_prefix is None:
        return array("i", job.ids)
    return array("i", (*as_source(job.ids), *job.decoder_prefix))
