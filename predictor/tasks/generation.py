"""Text generation: checks prompts, turns them into tokens and completes their parameters.

The replies are the business of `predictor.tasks.prepared_generation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from predictor.cache_scope import current_scope
from predictor.engine.generation.sampling_params import SamplingParams, SequenceGenerator
from predictor.errors import PromptTooLong, RequestError
from predictor.sentences import quote
from predictor.tasks.chat_template import ChatTemplate
from predictor.tasks.generation_config import Defaults
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.messages import DEFAULT_CHAT, ChatOptions, MessageForm, ReplyForm
from predictor.tasks.prepared_generation import Job, PreparedGeneration
from predictor.tasks.prompt_cut import NO_CUT, Cut
from predictor.tasks.prompt_encoder import PromptEncoder
from predictor.tasks.prompt_scores import PromptScoring
from predictor.tasks.request import (
    Conversation,
    GenerationParameters,
    GenerationRequest,
    PromptText,
    TaskRequest,
)
from predictor.tasks.structured_output import DEFAULT_LIMITS, GrammarLimits, StructuredOutput
from predictor.tasks.token_lists import (
    check_allowed,
    check_token_ids,
    special_tokens,
    tokens_within,
    with_special_stops,
    words_as_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as tokens.

    Attributes:
        ids: The tokens.
        form: How its replies are read as messages; None if they are text.
    """

    ids: tuple[int, ...]
    form: ReplyForm | None = None


class TextGeneration:
    """Generates text: continues prompts, or decodes from a prompt that an encoder has read.

    Attributes:
        spec: The task's inputs, parameters and outputs.
        engine: Runs the model.
        tokenizer: The model's tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        engine: SequenceGenerator,
        defaults: Defaults,
        *,
        max_model_len: int,
        vocabulary: int,
        decoder_prefix: tuple[int, ...] | None = None,
        max_reply_len: int | None = None,
        grammar_limits: GrammarLimits = DEFAULT_LIMITS,
        chat: ChatOptions = DEFAULT_CHAT,
        max_tokens_in_flight: int = 2 * 1024**2,
    ) -> None:
        """Create the task of a model whose engine runs.

        Args:
            tokenizer: The model's tokenizer.
            engine: Runs the model.
            defaults: Parameters where a request specifies none.
            max_model_len: Most tokens of prompt and reply together, or of a source.
            vocabulary: Number of token ids of the model.
            decoder_prefix: Tokens that a reply of an encoder-decoder begins with, unless a request
                has another first token; None if replies continue prompts.
            max_reply_len: Most tokens of a decoder, its prefix included; None if replies continue
                prompts.
            grammar_limits: The bounds of schemas and grammars that replies follow.
            chat: How conversations are encoded and replies to them read.
            max_tokens_in_flight: Most tokens of the prompts that one request scores.
        """
        self.spec = GenerationSpec()
        self.tokenizer: Any = tokenizer
        self.engine = engine
        self._defaults = defaults
        self._longest, self._most_tokens = max_model_len, max_tokens_in_flight
        self._max_reply_len = max_reply_len
        self._vocabulary = vocabulary
        self._decoder_prefix = decoder_prefix
        self._encoder = PromptEncoder(
            tokenizer,
            max_model_len=max_model_len,
            vocabulary=vocabulary,
            is_continued=max_reply_len is None,
        )
        self._template = ChatTemplate(tokenizer, splits_special_tokens=chat.split_special_tokens)
        self._messages = MessageForm(tokenizer, chat)
        self._structured = StructuredOutput(tokenizer, engine, grammar_limits)
        self._special = special_tokens(tokenizer, vocabulary)
        end = tokenizer.eos_token_id
        self._end_tokens: frozenset[int] = frozenset(() if end is None else (end,))

    def prepare(self, request: TaskRequest) -> PreparedGeneration:
        """Return the prompts as tokens, with complete sampling parameters.

        Blocks while it tokenises; does not wait for the model.

        Raises:
            RequestError: A prompt is empty for this tokenizer, a token id is not in the
                vocabulary, or a conversation does not suit the model's chat template.
            PromptTooLong: Prompt, or prompt and reply, exceed `max_model_len`.
        """
        if not isinstance(request, GenerationRequest):
            raise TypeError(f"{self.spec.task} does not take a {type(request).__name__}")
        jobs = []
        encoded: dict[tuple[int, Cut, bool | None], Encoded] = {}  # once for n replies
        words = cache(partial(words_as_tokens, tokenizer=self.tokenizer))
        scoring = PromptScoring(self._most_tokens, self._decoder_prefix is not None)
        for requested in request.prompts:
            prompt, stops = with_special_stops(requested, self._special)
            text, cut = prompt.text, Cut.of(prompt.parameters)
            key = id(text), cut, prompt.parameters.add_special_tokens
            if key not in encoded:
                encoded[key] = self._encode(text, cut, add_special_tokens=key[-1])
            source = encoded[key]
            prefix = self._prefix(prompt.parameters.forced_bos_token_id)
            sampling = self._sampling(prompt.parameters, source.ids)
            sampling = replace(
                sampling,
                adapter=request.adapter,
                bad_words=words(prompt.parameters.bad_words),
                prompt_logprobs=scoring.alternatives(prompt.parameters, source.ids),
            )
            check_allowed(sampling)
            within = tokens_within(prompt.parameters.stop, self._special)
            jobs.append(Job(prompt, source.ids, sampling, prefix, source.form, stops, within))
        scope = current_scope(request.cache_salt)
        return PreparedGeneration(jobs, self.tokenizer, self.engine, self._structured, scope)

    def conversation_ids(self, conversation: Conversation) -> Sequence[int]:
        """Return the tokens of a conversation by the model's chat template.

        Raises:
            RequestError: There is no template, or it refuses the conversation.
        """
        prompt = self._template.render(conversation)
        return self._encoder.tokens(
            prompt.marked, NO_CUT, mark=prompt.mark, add_special_tokens=False
        )

    def _prefix(self, forced: int | str | None) -> tuple[int, ...] | None:
        """Return the tokens that a decoder begins with; None if replies continue prompts."""
        if forced is None:
            return self._decoder_prefix
        if self._decoder_prefix is None:
            raise RequestError("forced_bos_token_id is for models with an encoder; this has none.")
        token = forced
        if isinstance(token, str):
            token = self.tokenizer.convert_tokens_to_ids(forced)
            if token is None or self.tokenizer.convert_ids_to_tokens(token) != forced:
                raise RequestError(f"forced_bos_token_id {quote(str(forced))} is no token.")
        if token >= self._vocabulary:
            raise RequestError(f"forced_bos_token_id must be below {self._vocabulary}.")
        return (self._decoder_prefix[0], token)

    def _encode(self, text: PromptText, cut: Cut, *, add_special_tokens: bool | None) -> Encoded:
        if not isinstance(text, Conversation):
            added = add_special_tokens is not False
            return Encoded(self._encoder.encode(text, cut, add_special_tokens=added))
        prompt, added = self._template.render(text), add_special_tokens is True
        ids = self._encoder.encode(prompt.marked, cut, mark=prompt.mark, add_special_tokens=added)
        return Encoded(ids, self._messages.reply_form(text, prompt.text))

    def _sampling(self, requested: GenerationParameters, ids: Sequence[int]) -> SamplingParams:
        defaults = self._defaults
        check_token_ids(requested, self._vocabulary)
        most = self._new_tokens(requested, len(ids))
        return SamplingParams(
            max_new_tokens=most,
            temperature=self._temperature(requested),
            top_p=defaults.top_p if requested.top_p is None else requested.top_p,
            top_k=defaults.top_k if requested.top_k is None else requested.top_k,
            min_p=defaults.min_p if requested.min_p is None else requested.min_p,
            repetition_penalty=defaults.repetition_penalty
            if requested.repetition_penalty is None
            else requested.repetition_penalty,
            presence_penalty=requested.presence_penalty or 0.0,
            frequency_penalty=requested.frequency_penalty or 0.0,
            logit_bias=requested.logit_bias,
            seed=requested.seed,
            logprobs=requested.logprobs,
            end_tokens=self._ends(requested),
            ignore_eos=requested.ignore_eos,
            min_new_tokens=self._least(requested, len(ids), most),
            no_repeat_ngram_size=defaults.no_repeat_ngram_size,
            suppress_tokens=defaults.suppress_tokens,
            begin_suppress_tokens=defaults.begin_suppress_tokens,
            allowed_tokens=requested.allowed_token_ids,
        )

    def _ends(self, requested: GenerationParameters) -> frozenset[int]:
        own = frozenset() if requested.ignore_eos else self._end_tokens
        return own | frozenset(requested.stop_token_ids)

    def _least(self, requested: GenerationParameters, prompt_tokens: int, most: int) -> int:
        if requested.min_new_tokens is None:
            return self._min_new_tokens(prompt_tokens)
        if requested.min_new_tokens > most:
            raise RequestError(
                f"At least {requested.min_new_tokens} new tokens are more than the {most} that the "
                "reply may have."
            )
        return requested.min_new_tokens

    def _min_new_tokens(self, prompt_tokens: int) -> int:
        before, prefix = prompt_tokens, self._decoder_prefix
        forced = 0 if prefix is None else len(prefix) - 1
        if prefix is not None:
            before = len(prefix)
        by_length, by_count = self._defaults.min_length - before, self._defaults.min_new_tokens
        return max(by_length, by_count - forced, 0)

    def _temperature(self, requested: GenerationParameters) -> float:
        if requested.temperature is not None:
            return requested.temperature
        if any(one is not None for one in (requested.top_p, requested.top_k, requested.min_p)):
            return self._defaults.sampling_temperature
        return self._defaults.temperature

    def _new_tokens(self, parameters: GenerationParameters, prompt_tokens: int) -> int:
        requested, prefix = parameters.max_new_tokens, self._prefix(parameters.forced_bos_token_id)
        room = self._longest - prompt_tokens
        if self._max_reply_len is not None:
            room = self._max_reply_len - len(prefix or ())
        if requested is None:
            return min(parameters.default_new_tokens or self._defaults.max_new_tokens, room)
        if requested > room and self._max_reply_len is not None:
            raise PromptTooLong(
                f"A reply of {requested} tokens exceeds the {room} tokens that this model can "
                "generate (max_model_len).",
                tokens=requested,
                limit=room,
            )
        if requested > room:
            raise PromptTooLong(
                f"A prompt of {prompt_tokens} tokens and {requested} new tokens exceed the "
                f"{self._longest} tokens that this model takes (max_model_len).",
                tokens=prompt_tokens + requested,
                limit=self._longest,
            )
        return requested
