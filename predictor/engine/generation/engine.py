"""The generation engine: the model thread with the policy of continuous batching."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Unpack

from predictor.engine.generation.continuous_batching import ContinuousBatching
from predictor.engine.generation.draft_model import DraftModel
from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits
from predictor.engine.generation.generated_sequence import GeneratedSequence
from predictor.engine.generation.grammar import Vocabulary
from predictor.engine.generation.kv_cache import PagedKVCache
from predictor.engine.generation.runner import Runner
from predictor.engine.generation.sampler import Sampler
from predictor.engine.generation.sampling_params import SamplingParams, SequenceCallback
from predictor.engine.generation.token_mask import MaskFactory, TokenMask
from predictor.engine.model_thread import ModelThread, ThreadOptions
from predictor.metrics import EngineMetrics
from predictor.settings_limits import GRAMMAR_BYTES


class Engine(ModelThread[GeneratedSequence, Chunk]):
    """Generates sequences until it is stopped or the model is broken.

    Attributes:
        runner: Runs the forward passes.
        limits: The limits of the KV cache and of a forward pass.
    """

    def __init__(
        self,
        runner: Runner,
        limits: SchedulerLimits,
        *,
        eos_token_ids: frozenset[int],
        metrics: EngineMetrics,
        cache: PagedKVCache | None = None,
        draft_model: DraftModel | None = None,
        **options: Unpack[ThreadOptions],
    ) -> None:
        """Start the model thread.

        Args:
            runner: Runs the forward passes.
            limits: The limits of the KV cache and of a forward pass.
            eos_token_ids: Tokens that end a sequence.
            metrics: Takes counts and times.
            cache: The runner's cache, if sequences share what it keeps of a prefix; else None.
            draft_model: Computes drafts, if there is one.
            options: See `ThreadOptions`.
        """
        self.runner, self.limits, self._eos_token_ids = runner, limits, eos_token_ids
        self._masks = MaskFactory(self.call)
        policy = ContinuousBatching(runner, limits, metrics, cache, draft_model)
        super().__init__(policy, name="engine", **options)

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        callback: SequenceCallback,
        *,
        request: int | None = None,
        key: int | None = None,
        scope: bytes = b"",
        is_bulk: bool = False,
    ) -> int:
        """Hand in a sequence and return its key; do not wait.

        Args:
            prompt: Token ids of the model's vocabulary, at least one. Prompt and reply together
                must fit in the KV cache. The prompt is not copied before its first forward pass.
            params: How the sequence is continued.
            callback: Called with its tokens and its end.
            request: The request that it belongs to, see `new_request`. None if it is the only one.
            key: Its key, if the caller gives every sequence one.
            scope: Sequences of equal scopes share what is computed of equal prefixes.
            is_bulk: Whether it yields to sequences that are not.

        Raises:
            EngineBroken: The engine has ended.
        """
        number = self.new_request() if key is None else key
        own = frozenset() if params.ignore_eos else self._eos_token_ids
        now, ends = time.monotonic(), own | params.end_tokens

        def begin(mask: TokenMask | None) -> None:
            fields = prompt, params, Sampler(params, prompt, ends, mask), callback, request, scope
            self.put(GeneratedSequence(*fields, is_bulk, now), number)

        self._masks.begin(number, params.grammar, ends, begin, callback.on_finish)
        return number

    def use_vocabulary(self, vocabulary: Vocabulary, most_bytes: int = GRAMMAR_BYTES) -> None:
        """Take the vocabulary that grammars are followed with, before the first such sequence.

        Args:
            vocabulary: The model's tokens.
            most_bytes: Most bytes of compiled grammars. If replies follow as many, others wait.
        """
        self._masks.use_vocabulary(vocabulary, most_bytes)

    def cancel(self, key: int) -> None:
        """Forget a sequence after the current step. Its callback is not called again."""
        self._masks.cancel(key)
        super().cancel(key)
