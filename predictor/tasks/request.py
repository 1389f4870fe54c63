"""Typed requests, whatever the protocol: prompts for generation, instances for encoder tasks."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

MAX_INSTANCES = 256
"""Prompts or instances in one request; a larger job does better as several requests, between which
those of other clients can run."""

MAX_TEXTS = 2048
"""Texts in one request for embeddings, as in OpenAI's API: a text is encoded once, so even so many
take no longer than a few replies."""

TOKENS = "tokens"
"""The parameter of text embedding that holds token ids, for protocols that accept them as input."""

_SHORT = 2048
"""Characters that a tokenizer takes less than 1 ms for: less than starting another thread, and than
the several ms in which two threads wait for the interpreter's lock in turn."""

_CHARACTERS_PER_TEXT = 128
"""Characters that a text counts for besides its own."""


_TOKENS_PER_LOGPROB, _TOKENS_PER_ALTERNATIVE = 16, 10
"""Tokens that the log probability of a token of a prompt counts for, and an alternative to it.
Numbers, texts and JSON take up to 500 and 330 bytes; a token counts for 36 bytes."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply must follow.

    Attributes:
        form: The form of the text.
        text: A JSON schema, a regular expression, a list of strings in JSON, or a grammar in Lark's
            or GBNF's form.
        is_lenient: Whether keywords of a schema that cannot be enforced are left out.
    """

    form: Literal["json_schema", "regex", "choice", "grammar"]
    text: str
    is_lenient: bool = False


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """How a reply is generated; ``None`` leaves a parameter to the model's generation config.

    Attributes:
        max_new_tokens: Most tokens of the reply; 0 computes the prompt alone.
        temperature: 0 is greedy decoding; above 0 it divides the logits before sampling.
        top_p: Sample from the smallest set of tokens with this probability mass, in (0, 1].
        top_k: Sample from this many most probable tokens; 0 is no limit.
        min_p: Sample from tokens with at least this fraction of the largest probability.
        repetition_penalty: Divides the logits of tokens already seen; 1 is none.
        seed: Makes a sampled reply repeatable.
        stop: The reply ends before the first of these strings that appears in it.
        return_full_text: Whether the reply begins with the prompt.
        presence_penalty: Subtracted once from the logit of each token that is in the reply.
        frequency_penalty: Subtracted from a token's logit for each time that it is in the reply.
        logit_bias: Added to the logits of these token ids.
        logprobs: How many alternatives to return with each token; None returns no tokens.
        timeout: Seconds after which the whole request is cancelled.
        default_new_tokens: Value for an absent `max_new_tokens`, reduced to the room that is left.
        forced_bos_token_id: The first token of the reply of a model with an encoder, such as that
            of a language, as its id or its text.
        prompt_limit: Tokens to which a longer prompt is cut; None cuts none.
        keeps_prompt_end: Whether its last tokens are kept then, and not its first.
        grammar: What the reply must follow; None for any text.
        min_new_tokens: Tokens before which the model and `stop_token_ids` do not end the reply.
        ignore_eos: Whether the model's end tokens do not end it.
        stop_token_ids: Token ids that end it, and are no part of its text.
        allowed_token_ids: The only token ids of it; empty for all.
        bad_words: Texts that it does not have, as tokens.
        prompt_logprobs: How many alternatives to return with each token of the prompt; None returns
            no tokens.
        add_special_tokens: Whether the tokens that the tokenizer adds are added, such as one to
            begin with; None adds them to a prompt, and not to what a chat template writes.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    return_full_text: bool = False
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    timeout: float | None = None
    default_new_tokens: int | None = None
    prompt_limit: int | None = None
    keeps_prompt_end: bool = False
    min_p: float | None = None
    forced_bos_token_id: int | str | None = None
    grammar: Grammar | None = None
    min_new_tokens: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    prompt_logprobs: int | None = None
    add_special_tokens: bool | None = None

    @property
    def prompt_weight(self) -> int:
        """How many tokens a token of the prompt counts for, with its log probabilities."""
        if self.prompt_logprobs is None:
            return 1
        return 1 + _TOKENS_PER_LOGPROB + _TOKENS_PER_ALTERNATIVE * self.prompt_logprobs


DEFAULT_PARAMETERS = GenerationParameters()
"""Leaves everything to the model's generation config."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: Its text.
        extra: Its other keys as a chat template takes them: tool calls, the id of the call that it
            answers, its reasoning.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of a conversation, and what the next one may be.

    Attributes:
        messages: The turns.
        tools: The functions that the reply may call, in OpenAI's form.
        forced: What the reply must be besides a text: calls of any of the tools, or the call of
            this function. The grammar of the reply has the same.
        is_single: Whether the reply calls at most one function.
        template_options: Further variables of the chat template.
        size: Characters of all of it.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    forced: ForcedCalls | None = None
    is_single: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0


@dataclass(frozen=True, slots=True)
class ForcedCalls:
    """Calls that a reply must make: of the function of this name, or of at least one tool."""

    function: str | None = None


PromptText: TypeAlias = "str | array[int] | Conversation"
"""A text, token ids, or a conversation for the model's chat template."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and the parameters of its reply."""

    text: PromptText
    parameters: GenerationParameters


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request for replies to at least one prompt.

    Attributes:
        prompts: The prompts.
        adapter: The LoRA adapter that answers; None is the model alone.
        cache_salt: Makes the request's scope in the prefix cache narrower; empty does not.
    """

    prompts: tuple[Prompt, ...]
    adapter: str | None = None
    cache_salt: str = ""

    @property
    def timeout(self) -> float | None:
        """The least of the prompts' own timeouts in seconds, or None."""
        timeouts = [prompt.parameters.timeout for prompt in self.prompts]
        return min((seconds for seconds in timeouts if seconds is not None), default=None)

    @property
    def sequences(self) -> int:
        """The number of replies."""
        return len(self.prompts)

    @property
    def most_tokens(self) -> int:
        """The most tokens that the prompts may have, if none is shorter than a character.

        Log probabilities of a prompt count for some more.
        """
        lengths = (_length(each.text) * each.parameters.prompt_weight for each in self.prompts)
        return sum(lengths)

    @property
    def scores_prompts(self) -> bool:
        """Whether the answer has log probabilities of the prompts."""
        return any(each.parameters.prompt_logprobs is not None for each in self.prompts)

    @property
    def is_short(self) -> bool:
        """Whether preparing it takes less than 1 ms; a template may take any time."""
        return _tokenises_fast(map(_characters, self.prompts))


@dataclass(frozen=True, slots=True)
class EncoderInstance:
    """One instance for an encoder task.

    Attributes:
        fields: Its texts by name.
        parameters: Its checked parameters by name; only the task that made them reads them.
    """

    fields: Mapping[str, str]
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EncoderRequest:
    """A request for at least one answer of an encoder task.

    Attributes:
        instances: The instances, in order.
        timeout: Seconds after which the whole request is cancelled, or None.
    """

    instances: tuple[EncoderInstance, ...]
    timeout: float | None = None

    @property
    def sequences(self) -> int:
        """The number of answers."""
        return len(self.instances)

    @property
    def most_tokens(self) -> int:
        """The most tokens that the texts may have, if none is shorter than a character."""
        texts = (text for instance in self.instances for text in instance.fields.values())
        given = (instance.parameters.get(TOKENS) or () for instance in self.instances)
        return sum(map(len, texts)) + sum(map(len, given))

    @property
    def is_short(self) -> bool:
        """Whether tokenising it takes less than 1 ms."""
        texts = (text for instance in self.instances for text in instance.fields.values())
        return _tokenises_fast(map(len, texts))


TaskRequest = GenerationRequest | EncoderRequest
"""A request to any task."""


def most_instances(task: str) -> int:
    """Return the most prompts or instances that one request for a task may have."""
    return MAX_TEXTS if task == "text_embedding" else MAX_INSTANCES


def _length(text: PromptText) -> int:
    return text.size if isinstance(text, Conversation) else len(text)


def _tokenises_fast(lengths: Iterable[float]) -> bool:
    return sum(length + _CHARACTERS_PER_TEXT for length in lengths) <= _SHORT


def _characters(prompt: Prompt) -> float:
    if isinstance(prompt.text, Conversation):
        return math.inf
    return len(prompt.text) + sum(map(len, prompt.parameters.bad_words))
