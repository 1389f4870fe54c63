"""The inputs of an encoder engine: whole texts as tokens. No tensors here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MAX_TOP_K = 100
"""Most tokens that may replace one mask. Those after it have a probability near zero."""

EncoderCallback = Callable[[Any], None]
"""Called in another thread with the result of a text, or with a `PredictorError` instead. The
result is an array of numpy; its shape depends on the task, see `postprocess`."""


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """One text, or a pair of texts, as tokens.

    Attributes:
        ids: The token ids, including special tokens; at least one.
        types: For each token, which text of a pair it belongs to; None if the model does not take
            token types.
        positions: The tokens whose outputs the task needs; empty for all of them.
        about: Data that the task keeps for its answer, such as the tokens' offsets. The engine
            neither needs nor gets it.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    positions: tuple[int, ...] = ()
    about: Any = None


class TextEncoder(Protocol):
    """An engine of an encoder task, in this process or in another."""

    def new_request(self) -> int:
        """Return a number for a client's request, under which all that it submits is known."""
        ...

    def submit_all(
        self,
        texts: Sequence[EncoderInput],
        callbacks: Sequence[EncoderCallback],
        *,
        request: int | None = None,
        is_bulk: bool = False,
    ) -> list[int]:
        """Hand in the texts of a request and return their keys; do not wait.

        Bulk work yields to texts that are none.

        Raises:
            EngineBroken: The engine has ended.
        """
        ...

    def cancel(self, key: int) -> None:
        """Forget a text. Its callback is not called again, if it does not run already."""
        ...
