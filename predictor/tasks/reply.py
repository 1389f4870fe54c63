"""Passes a reply from the thread that receives it to the event loop that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from predictor.engine.generation.prompt_tokens import PromptTokens
from predictor.engine.generation.sampling_params import CachedPrompt, FinishReason, Queued, Token
from predictor.errors import PredictorError
from predictor.tasks.answers import Completion, Piece, ScoredToken
from predictor.tasks.detokenizer import TextStream
from predictor.tasks.messages import ReplyForm
from predictor.tasks.prompt_scores import ScoredPrompt
from predictor.tasks.tool_calls import MessagePart, joined

Take = Callable[[Piece | PredictorError], None]


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends a reply besides the end tokens of the model and its length.

    Attributes:
        texts: Strings before which it ends.
        ids: Tokens that end it and are no part of its text.
        special: Those of them that stand for a string of `texts`.
        tokens: Special tokens that strings of `texts` contain, with their ids.
    """

    texts: tuple[str, ...]
    ids: Collection[int]
    special: Mapping[int, str]
    tokens: Mapping[str, int]


class Reply:
    """The callback of one sequence: passes pieces of text, or an error, to the event loop.

    If the reply is not streamed, there is one piece, the last.
    """

    def __init__(
        self,
        index: int,
        prompt: tuple[int, ...],
        tokenizer: Any,
        *,
        prompt_tokens: int,
        stops: Stops,
        form: ReplyForm | None,
        scores: bool,
        scores_prompt: bool,
        by_token: bool,
        loop: asyncio.AbstractEventLoop,
        take: Take,
    ) -> None:
        """Create the callback of a sequence.

        Args:
            index: Index of the prompt in the request.
            prompt: Tokens that the reply's text continues.
            tokenizer: A transformers tokenizer.
            prompt_tokens: Tokens of the prompt.
            stops: What ends the reply.
            form: How the reply is read as a message; None if it is text.
            scores: Whether log probabilities are passed on.
            scores_prompt: Whether those of the prompt are.
            by_token: Whether the reply is streamed.
            loop: Where `take` is called.
            take: Takes pieces, the last of which has an ending, or an error.
        """
        self._index, self._prompt_tokens = index, prompt_tokens
        self._tokenizer = tokenizer
        self._scores, self._by_token = scores, by_token
        self._stops, self._special_stop = stops, ""
        self._loop, self._take = loop, take
        kept = frozenset() if form is None else form.kept_tokens
        self._stream = TextStream(tokenizer, prompt, stops.texts, kept, stops.tokens)
        self._parser = None if form is None else form.new_parser()
        self._count = self._cached = 0
        self._queue_seconds: float | None = None
        self._text = ""
        self._tokens: list[ScoredToken] = []
        self._reasoning: list[str] = []
        self._first, self._scores_prompt = prompt[:1], scores_prompt
        self._prompt: list[PromptTokens] = []

    def on_queued(self, queued: Queued) -> None:
        """Take how long the sequence waited."""
        self._queue_seconds = queued.seconds

    def on_cached_prompt(self, cached: CachedPrompt) -> None:
        """Take how much of the prompt was cached."""
        self._cached = cached.tokens

    def on_prompt_tokens(self, tokens: PromptTokens) -> None:
        """Take the next tokens of the prompt, with their log probabilities."""
        self._prompt.append(tokens)

    def on_token(self, token: Token) -> bool:
        """Take the next token; return whether a stop sequence ends the reply with it."""
        self._count += 1
        self._special_stop = self._stops.special.get(token.id, "")
        if token.id in self._stops.ids:
            pass
        elif self._by_token or self._stops.texts:
            self._text += self._stream.push(token.id)
        else:
            self._stream.take(token.id)
        if self._scores:
            self._tokens.append(self._scored(token))
        if self._by_token and not self._stream.stopped and (self._text or self._tokens):
            self._pass_on(None)
        return self._stream.stopped

    def on_finish(self, outcome: FinishReason | PredictorError) -> None:
        """Pass on the text that is left, and how the reply ended."""
        if isinstance(outcome, PredictorError):
            self._send(outcome)
            return
        self._text += self._stream.finish()
        self._pass_on("stop_sequence" if self._stop(outcome) else outcome)

    def _stop(self, ending: FinishReason | None) -> str:
        """Return the stop sequence that ends the reply; empty if none does."""
        return self._stream.stop or (self._special_stop if ending not in (None, "length") else "")

    def _pass_on(self, ending: FinishReason | None) -> None:
        part = MessagePart(self._text)
        if self._parser is not None:
            part = self._parser.feed(self._text, is_last=ending is not None)
        self._text = ""
        if part.reasoning:
            self._reasoning.append(part.reasoning)
        if ending is None and part == MessagePart() and not self._tokens:
            return
        self._send(
            Piece(
                index=self._index,
                text=part.content,
                ending=ending,
                prompt_tokens=self._prompt_tokens,
                completion_tokens=self._count,
                tokens=tuple(self._tokens),
                reasoning=part.reasoning,
                calls=part.calls,
                cached_tokens=self._cached,
                reasoning_tokens=0 if ending is None else self._reasoning_tokens(),
                stop=self._stop(ending),
                queue_seconds=self._queue_seconds,
                prompt=self._scored_prompt(),
            )
        )
        self._tokens = []

    def _scored_prompt(self) -> ScoredPrompt | None:
        """Return the tokens of the prompt once, if they are scored."""
        if not self._scores_prompt:
            return None
        self._scores_prompt = False
        return ScoredPrompt.of(self._tokenizer, self._first[0], tuple(self._prompt))

    def _reasoning_tokens(self) -> int:
        """Return the tokens of the reasoning's text, which are about those that were generated."""
        if not self._reasoning:
            return 0
        ids = self._tokenizer.encode("".join(self._reasoning), add_special_tokens=False)
        return min(len(ids), self._count)

    def _send(self, item: Piece | PredictorError) -> None:
        # The loop is closed where the process ends with work unfinished; then nobody waits.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, item)

    def _scored(self, token: Token) -> ScoredToken:
        special = self._tokenizer.all_special_ids
        ids = tuple(i for i, _ in token.top)
        return ScoredToken(
            id=token.id,
            text=self._tokenizer.decode([token.id]),
            logprob=token.logprob or 0.0,
            special=token.id in special,
            top=tuple((self._tokenizer.decode([i]), logprob) for i, logprob in token.top),
            top_ids=ids,
            top_special=tuple(i in special for i in ids),
        )


def as_completion(piece: Piece, *, before: str = "") -> Completion:
    """Return the completion of a reply that has only this piece.

    Args:
        piece: The piece, which has an ending.
        before: Text to begin with.
    """
    if piece.ending is None:
        raise ValueError("the reply goes on")
    return Completion(
        text=before + piece.text,
        ending=piece.ending,
        prompt_tokens=piece.prompt_tokens,
        completion_tokens=piece.completion_tokens,
        tokens=piece.tokens,
        reasoning=piece.reasoning,
        calls=joined(piece.calls),
        cached_tokens=piece.cached_tokens,
        reasoning_tokens=piece.reasoning_tokens,
        stop=piece.stop,
        queue_seconds=piece.queue_seconds,
    )
