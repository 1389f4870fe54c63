"""Fill-mask: the tokens that may replace each mask of a text, with the model's own mask token.

The parameter ``top_k`` (5) is the number of tokens for each mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from predictor.engine.encoding.inputs import MAX_TOP_K, EncoderInput
from predictor.errors import CheckpointError, RequestError
from predictor.tasks.answers import Filling, Masks
from predictor.tasks.encoder_task import Array, EncoderTaskSpec
from predictor.tasks.parameters import integer, parse_named
from predictor.tasks.request import EncoderInstance
from predictor.tasks.task import Field, Output
from predictor.tasks.tokenization import CUT_CHECKS, Tokenizing


class FillMask(EncoderTaskSpec):
    """The task; see `EncoderTaskSpec` for its methods."""

    task = "fill_mask"
    outputs = (
        Output("row", "INT32", (-1,)),
        Output("token", "BYTES", (-1, -1)),
        Output("token_id", "INT32", (-1, -1)),
        Output("score", "FP32", (-1, -1)),
    )

    def __init__(self, tokenizing: Tokenizing) -> None:
        """Create the task.

        Raises:
            CheckpointError: The tokenizer has no mask.
        """
        if tokenizing.tokenizer.mask_token_id is None:
            raise CheckpointError(
                "This model's tokenizer has no mask token, which fill_mask needs."
            )
        self._tokenizing = tokenizing
        example = f"Today the {tokenizing.tokenizer.mask_token} is really nice."
        self.fields = (Field("text", aliases=("prompt", "data"), example=example),)

    def decode(
        self, fields: Mapping[str, str], parameters: Mapping[str, object]
    ) -> EncoderInstance:
        """Return a checked instance."""
        checks = {
            "top_k": lambda name, value: integer(name, value, 1, MAX_TOP_K),
            **CUT_CHECKS,
        }
        defaults = {"top_k": 5, **self._tokenizing.cut_defaults}
        return EncoderInstance(fields, parse_named(parameters, checks, defaults))

    def tokenize(self, instance: EncoderInstance) -> tuple[EncoderInput, ...]:
        """Return the one text, with the positions of its masks."""
        cut = self._tokenizing.cut_of(instance.parameters)
        text = self._tokenizing.text(instance.fields["text"], cut=cut)
        mask = self._tokenizing.tokenizer.mask_token_id
        positions = tuple(position for position, token in enumerate(text.ids) if token == mask)
        if not positions:
            token = self._tokenizing.tokenizer.mask_token
            raise RequestError(f"A text has no mask; this model's is {token!r}.")
        return (EncoderInput(text.ids, text.types, positions),)

    def answer(
        self,
        instance: EncoderInstance,
        texts: Sequence[EncoderInput],
        results: Sequence[Array],
    ) -> Masks:
        """Return the best tokens for each mask."""
        (text,), ((scores_of, best),) = texts, results
        most = instance.parameters["top_k"]
        return Masks(
            tuple(
                tuple(
                    self._filling(text, position, int(token), float(score))
                    for token, score in zip(tokens, scores, strict=True)
                )
                for position, tokens, scores in zip(
                    text.positions, best[:, :most], scores_of[:, :most], strict=True
                )
            )
        )

    def _filling(self, text: EncoderInput, position: int, token: int, score: float) -> Filling:
        tokenizer = self._tokenizing.tokenizer
        filled = [*text.ids[:position], token, *text.ids[position + 1 :]]
        # The masks that are left are special tokens too.
        is_alone = len(text.positions) == 1
        return Filling(
            tokenizer.decode([token]),
            token,
            score,
            tokenizer.decode(filled, skip_special_tokens=is_alone),
        )
