"""Text generation: checks prompts, turns them into tokens and completes their parameters.

The replies are the business of `predictor.tasks.prepared_generation`.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from predictor.engine.generation.sampling_params import SamplingParams, SequenceGenerator
from predictor.errors import PromptTooLong, RequestError, reason_of
from predictor.tasks.chat_template import takes_parts, template_messages
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.large_texts import one_at_a_time
from predictor.tasks.model_facts import Defaults
from predictor.tasks.prepared_generation import Job, PreparedGeneration
from predictor.tasks.request import (
    GenerationParameters,
    GenerationRequest,
    Message,
    PromptText,
    TaskRequest,
)
from predictor.tasks.text_length import lengths_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    ) -> None:
        """Create the task of a model whose engine runs.

        Args:
            tokenizer: The model's tokenizer.
            engine: Runs the model.
            defaults: Parameters where a request specifies none.
            max_model_len: Most tokens of prompt and reply together.
            vocabulary: Number of token ids of the model.
            decoder_prefix: Tokens that every reply of an encoder-decoder begins with; None if
                replies continue prompts.
        """
        self.spec = GenerationSpec()
        self.tokenizer: Any = tokenizer
        self.engine = engine
        self._defaults = defaults
        self._max_model_len = max_model_len
        self._vocabulary = vocabulary
        self._decoder_prefix = decoder_prefix
        self._lengths = lengths_of(tokenizer)

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
        encoded: dict[tuple[int, int | None], tuple[int, ...]] = {}  # once for n replies
        for prompt in request.prompts:
            text, limit = prompt.text, prompt.parameters.prompt_limit
            if (id(text), limit) not in encoded:
                encoded[id(text), limit] = self._encode(text, limit)
            ids = encoded[id(text), limit]
            jobs.append(Job(prompt, ids, self._sampling(prompt.parameters, ids)))
        return PreparedGeneration(jobs, self.tokenizer, self.engine, self._decoder_prefix)

    def _encode(self, text: PromptText, limit: int | None) -> tuple[int, ...]:
        ids = self._ids(text, limit)[:limit]
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id]
        if not ids:
            raise RequestError("A prompt is empty, and this model has no token to begin with.")
        if len(ids) >= self._longest:
            raise PromptTooLong(
                f"A prompt has {len(ids)} tokens; {self._takes_at_most()}",
                tokens=len(ids) + 1,
                limit=self._longest,
            )
        if not 0 <= min(ids) <= max(ids) < self._vocabulary:
            raise RequestError(f"A token id is not between 0 and {self._vocabulary - 1}.")
        return tuple(ids)

    def _takes_at_most(self) -> str:
        return (
            f"with a reply of at least one token this model takes at most {self._longest} "
            "(max_model_len)."
        )

    @property
    def _longest(self) -> int:
        """Most tokens of prompt and reply together."""
        return self._max_model_len - len(self._decoder_prefix or ())

    def _ids(self, text: PromptText, limit: int | None) -> MutableSequence[int]:
        if isinstance(text, str):
            return self._tokenized(text, limit)
        if isinstance(text, tuple):
            return self._tokenized(self._chat_text(text), limit, add_special_tokens=False)
        return text

    def _tokenized(self, text: str, limit: int | None, **options: bool) -> list[int]:
        if limit is None:
            self._lengths.check(self._longest, "A prompt", self._takes_at_most(), text)
        with one_at_a_time(text):
            ids: list[int] = self.tokenizer(text, **options).input_ids
        return ids

    def _chat_text(self, turns: Sequence[Message]) -> str:
        if not self.tokenizer.chat_template:
            raise RequestError("This model has no chat template; ask it for completions.")
        try:
            text: str = self.tokenizer.apply_chat_template(
                template_messages(turns, in_parts=self._takes_parts),
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise RequestError(f"The model's chat template refuses: {reason_of(error)}.") from None
        return text

    @cached_property
    def _takes_parts(self) -> bool:
        return takes_parts(self.tokenizer)

    def _sampling(self, requested: GenerationParameters, ids: Sequence[int]) -> SamplingParams:
        defaults = self._defaults
        if any(token >= self._vocabulary for token in requested.logit_bias):
            raise RequestError(f"logit_bias names a token id above {self._vocabulary - 1}.")
        return SamplingParams(
            max_new_tokens=self._new_tokens(requested, len(ids)),
            temperature=self._temperature(requested),
            top_p=defaults.top_p if requested.top_p is None else requested.top_p,
            top_k=defaults.top_k if requested.top_k is None else requested.top_k,
            repetition_penalty=defaults.repetition_penalty
            if requested.repetition_penalty is None
            else requested.repetition_penalty,
            presence_penalty=requested.presence_penalty or 0.0,
            frequency_penalty=requested.frequency_penalty or 0.0,
            logit_bias=requested.logit_bias,
            seed=requested.seed,
            logprobs=requested.logprobs,
        )

    def _temperature(self, requested: GenerationParameters) -> float:
        if requested.temperature is not None:
            return requested.temperature
        if requested.top_p is not None or requested.top_k is not None:
            return self._defaults.sampling_temperature
        return self._defaults.temperature

    def _new_tokens(self, parameters: GenerationParameters, prompt_tokens: int) -> int:
        room = self._longest - prompt_tokens
        requested = parameters.max_new_tokens
        if requested is None:
            return min(parameters.default_new_tokens or self._defaults.max_new_tokens, room)
        if requested > room:
            raise PromptTooLong(
                f"A prompt of {prompt_tokens} tokens and {requested} new tokens exceed the "
                f"{self._longest} tokens that this model takes (max_model_len).",
                tokens=prompt_tokens + requested,
                limit=self._longest,
            )
        return requested
