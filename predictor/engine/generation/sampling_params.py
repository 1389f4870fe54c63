"""How one sequence is continued, in tokens, and how its callback is called; no tensors here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from predictor.engine.generation.prompt_tokens import PromptTokens
from predictor.errors import PredictorError

if TYPE_CHECKING:
    from predictor.engine.generation.grammar import Vocabulary

FinishReason = Literal["eos_token", "stop_sequence", "length"]
"""Why a sequence ended: the model ended it, its callback did, or its tokens ran out."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """All sampling parameters; a model's own defaults play no part here.

    Attributes:
        max_new_tokens: Most tokens to generate; 0 computes the prompt alone.
        temperature: 0 is greedy decoding.
        top_p: Probability mass to sample from; 1 is all of it.
        top_k: Tokens to sample from; 0 is all of them.
        min_p: Least probability of a token to sample, as a fraction of that of the most probable
            one, after `top_k` and `top_p`; 0 is no bound.
        repetition_penalty: Divides the logits of tokens of prompt and reply; 1 is none.
        presence_penalty: Subtracted from the logits of tokens that are in the reply; 0 is none.
        frequency_penalty: Subtracted once for each time that a token is in the reply; 0 is none.
        logit_bias: Added to the logits of these tokens.
        seed: Makes sampling repeatable, in any batch.
        logprobs: How many most probable tokens are returned with each token, beside its own log
            probability; None returns neither.
        prompt_logprobs: The same for the tokens of the prompt, all of which are computed then.
        end_tokens: Tokens that end the sequence, besides those that the engine has of the model.
        ignore_eos: Whether those of the model do not end it.
        min_new_tokens: Tokens that are generated before one may end the sequence.
        no_repeat_ngram_size: So many consecutive tokens never stand in the sequence twice; 0 allows
            all.
        suppress_tokens: Tokens that are never generated.
        begin_suppress_tokens: Tokens that are not generated first.
        allowed_tokens: The only tokens that are generated; empty for all.
        bad_words: Tokens that are never generated in this order, each word by itself.
        grammar: What the reply must follow, in llguidance's form; None for any text.
        adapter: The adapter that computes the sequence; None is the model alone.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    end_tokens: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    allowed_tokens: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    grammar: str | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class CachedPrompt:
    """How much of a prompt did not have to be computed.

    Attributes:
        tokens: Its first tokens that were in the KV cache already.
    """

    tokens: int


@dataclass(frozen=True, slots=True)
class Queued:
    """The wait of a sequence until its first forward pass, in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        id: Its id in the vocabulary.
        logprob: Natural logarithm of its probability under the model alone, before the sampling
            parameters; None unless `SamplingParams.logprobs` is set.
        top: The most probable tokens and their log probabilities, most probable first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class SequenceCallback(Protocol):
    """Receives one sequence. It is called in a thread of the engine's, so it must not wait.

    An exception that it raises fails its own sequence and no other.
    """

    def on_queued(self, queued: Queued) -> None:
        """Take how long it waited, from an engine in another process, before its first token."""
        ...

    def on_cached_prompt(self, cached: CachedPrompt) -> None:
        """Take how much of the prompt was cached, before the first token; not called for none."""
        ...

    def on_prompt_tokens(self, tokens: PromptTokens) -> None:
        """Take the next tokens of the prompt, if `SamplingParams.prompt_logprobs` is set."""
        ...

    def on_token(self, token: Token) -> bool:
        """Take the next token; return whether the sequence ends with it."""
        ...

    def on_finish(self, outcome: FinishReason | PredictorError) -> None:
        """Take the end of the sequence. This is called once, unless the sequence is cancelled."""
        ...


@runtime_checkable
class StartCallback(Protocol):
    """What a `SequenceCallback` has besides if it is told when its sequence starts."""

    def on_start(self) -> None:
        """Take that the first forward pass of the sequence begins."""
        ...


class SequenceGenerator(Protocol):
    """An engine of generation, in this process or in another."""

    def new_request(self) -> int:
        """Return a number for a client's request, under which all that it submits is known."""
        ...

    def use_vocabulary(self, vocabulary: Vocabulary, most_bytes: int) -> None:
        """Take the vocabulary that grammars are followed with, before the first such sequence.

        Args:
            vocabulary: The model's tokens.
            most_bytes: Most bytes of compiled grammars. If replies follow as many, others wait.
        """
        ...

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        callback: SequenceCallback,
        *,
        request: int | None = None,
        scope: bytes = b"",
        is_bulk: bool = False,
    ) -> int:
        """Hand in a sequence of a request and return its key; do not wait.

        Sequences share what is computed of equal prefixes if their scopes are equal. Bulk work
        yields to sequences that are none.

        Raises:
            EngineBroken: The engine has ended.
        """
        ...

    def cancel(self, key: int) -> None:
        """Forget a sequence. Its callback is not called again, once it has returned."""
        ...


def as_source(tokens: Iterable[int]) -> tuple[int, ...]:
    """Return tokens as they stand in a sequence of an encoder-decoder whose source they are."""
    return tuple(-1 - token for token in tokens)
