"""The log probabilities of a prompt's own tokens, as the engine passes them on; no tensors here."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from predictor.errors import PredictorError


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of a prompt, with its log probability after those before it.

    Attributes:
        id: Its id.
        logprob: Natural logarithm of its probability under the model alone.
        rank: 1 if it is the most probable token, 2 if one is more probable, and so on.
        top: The most probable tokens and their log probabilities, most probable first.
    """

    id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The next tokens of a prompt. The first token of all has no probability and is left out.

    Kept as numbers, of 12 bytes for each token and 8 for each alternative: as objects they would
    take 40 times as much.

    Attributes:
        ids: The ids.
        logprobs: The log probabilities, in float32 as they are computed.
        ranks: The ranks.
        top_ids: The alternatives of each token after those of the one before, equally many.
        top_logprobs: Their log probabilities.
    """

    ids: array[int]
    logprobs: array[float]
    ranks: array[int]
    top_ids: array[int]
    top_logprobs: array[float]

    @classmethod
    def of(cls, tokens: Sequence[PromptToken]) -> PromptTokens:
        """Return tokens as numbers."""
        pairs = [pair for token in tokens for pair in token.top]
        return cls(
            array("i", [token.id for token in tokens]),
            array("f", [token.logprob for token in tokens]),
            array("i", [token.rank for token in tokens]),
            array("i", [number for number, _ in pairs]),
            array("f", [logprob for _, logprob in pairs]),
        )

    def __len__(self) -> int:
        """Return how many tokens there are."""
        return len(self.ids)

    def __iter__(self) -> Iterator[PromptToken]:
        """Yield the tokens."""
        width = len(self.top_ids) // max(1, len(self.ids))
        for n, (token, logprob, rank) in enumerate(
            zip(self.ids, self.logprobs, self.ranks, strict=True)
        ):
            row = slice(n * width, (n + 1) * width)
            top = tuple(zip(self.top_ids[row], self.top_logprobs[row], strict=True))
            yield PromptToken(token, logprob, rank, top)


@dataclass(slots=True)
class PromptScores:
    """What a forward pass computes of the log probabilities of a prompt.

    Attributes:
        skipped: First tokens of the chunk after which none are needed.
        targets: The tokens that follow each of the next ones, whose log probabilities are needed.
        alternatives: How many most probable tokens are returned with each.
        tokens: The tokens, after the forward pass.
        error: Why there are none.
    """

    skipped: int
    targets: Sequence[int]
    alternatives: int
    tokens: list[PromptToken] = field(default_factory=list)
    error: PredictorError | None = None
