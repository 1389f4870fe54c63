"""The cut of a prompt that has more tokens than its request allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from predictor.tasks.request import GenerationParameters
from predictor.tasks.text_length import TextLengths


@dataclass(frozen=True, slots=True)
class Cut:
    """How a prompt that is too long is cut; a limit of None cuts none."""

    limit: int | None
    keeps_end: bool

    @classmethod
    def of(cls, parameters: GenerationParameters) -> Cut:
        """Return the cut that parameters ask for."""
        return cls(parameters.prompt_limit, parameters.keeps_prompt_end)

    def shorten(self, text: str, lengths: TextLengths) -> str:
        """Return what a text needs to have for its tokens to be cut."""
        if self.limit is None:
            return text
        return lengths.cut(text, self.limit, keeps_end=self.keeps_end)

    def apply(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the tokens that are left."""
        if self.limit is None:
            return ids
        return ids[-self.limit :] if self.keeps_end else ids[: self.limit]


NO_CUT = Cut(None, keeps_end=False)
"""The cut of a prompt that is refused if it is too long."""
