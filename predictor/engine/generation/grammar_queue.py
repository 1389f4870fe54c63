"""The order in which replies get the grammars that they follow, within the memory of grammars.

A reply whose grammar is compiled already does not wait behind one whose grammar has no room, unless
that one has waited for long. Those that need room get it in the order in which they came.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

from predictor.engine.generation.grammar import start_thread
from predictor.engine.generation.grammar_memory import GrammarMemory

logger = logging.getLogger(__name__)

MAX_OVERTAKE_SECONDS = 10.0
"""Seconds that a reply waits for room while others follow grammars that are there. Then these wait
behind it, for their grammar could be followed for ever."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A reply that is to follow a grammar.

    Attributes:
        grammar: The grammar.
        take: Has the reply follow the grammar; returns False if this has no room, and True if the
            reply is not waited for.
        since: When the reply came, in seconds of the monotonic clock.
    """

    grammar: str
    take: Callable[[], bool]
    since: float = field(default_factory=time.monotonic)


_LOOK_AGAIN = Turn("", lambda: True)


class GrammarQueue:
    """Gives replies their turns, in one thread, which alone adds to the memory of grammars."""

    def __init__(
        self, memory: GrammarMemory, max_overtake_seconds: float = MAX_OVERTAKE_SECONDS
    ) -> None:
        """Begin without replies, with a thread that ends with this object.

        Args:
            memory: The compiled grammars.
            max_overtake_seconds: See `MAX_OVERTAKE_SECONDS`.
        """
        # Its `put` may be called by a finalizer in the midst of another `put`.
        self._changes: SimpleQueue[Turn | None] = SimpleQueue()
        memory.on_leave = partial(self._changes.put, _LOOK_AGAIN)
        start_thread(partial(_give_turns, self._changes, memory, max_overtake_seconds), "grammars")
        weakref.finalize(self, self._changes.put, None).atexit = False

    def put(self, turn: Turn) -> None:
        """Give a reply its turn when there is a place for its grammar; do not wait."""
        self._changes.put(turn)

    def look_again(self) -> None:
        """Take that a reply is no longer waited for."""
        self._changes.put(_LOOK_AGAIN)


def _give_turns(
    changes: SimpleQueue[Turn | None], memory: GrammarMemory, max_overtake_seconds: float
) -> None:
    waiting: deque[Turn] = deque()
    while (turn := changes.get()) is not None:
        if turn is not _LOOK_AGAIN:
            is_late = bool(waiting) and time.monotonic() - waiting[0].since > max_overtake_seconds
            passes = not waiting or (not is_late and memory.get(turn.grammar) is not None)
            if not (passes and _take(turn)):
                waiting.append(turn)
        while waiting and _take(waiting[0]):
            waiting.popleft()
        del turn  # it refers to a reply


def _take(turn: Turn) -> bool:
    try:
        return turn.take()
    # A panic of llguidance is no `Exception`; the next replies need this thread.
    except BaseException:
        logger.exception("A turn has failed")
        return True
