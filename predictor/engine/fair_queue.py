"""Who goes next of all that wait, fair between the requests that they belong to: arithmetic.

A request may have hundreds of sequences, and its neighbour one. In order of arrival the neighbour
would wait for hundreds. So the next one is of the request that has been *served* least, in tokens;
of several such requests, of the one that submitted fewest sequences, then of the first to arrive.
Sequences of one request keep their order, and so do requests of one sequence each.

Requests that arrive have been served least. So that they do not keep others back for ever, an entry
is overtaken by later ones no more than `MAX_OVERTAKES` times while it is the oldest; then it goes
next. The same holds for entries that are set aside because they have no room yet: others may
overtake them, but no more often.

Every operation takes time in proportion to the logarithm of what waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from predictor.engine.updatable_heap import UpdatableHeap

MAX_OVERTAKES = 8
"""How often a sequence is overtaken by others before it goes next."""


@dataclass(slots=True, eq=False)
class Entry:
    """A sequence or a text that waits.

    Attributes:
        key: Its key, unique among all that wait.
        request: The request that it belongs to.
        tokens: How many tokens it has, the measure of service.
        is_bulk: Whether it goes after all that are not, see `priority_queue`.
        arrival: Its place in the order of arrival; set when it is added.
        position: How many sequences its request had submitted before; set when it is added.
        overtaken: How often others have gone before it although they were behind.
    """

    key: int
    request: int
    tokens: int
    is_bulk: bool = False
    arrival: int = 0
    position: int = 0
    overtaken: int = 0

    @property
    def place(self) -> tuple[int, int, int]:
        """Its place among those of all requests: first ones first, then in order of arrival.

        Bulk work comes last.
        """
        return (self.is_bulk, self.position, self.arrival)

    @property
    def is_due(self) -> bool:
        """Whether it has been overtaken so often that it goes next."""
        return self.overtaken >= MAX_OVERTAKES


AnyEntry = TypeVar("AnyEntry", bound=Entry)


@dataclass(slots=True, eq=False)
class _Request(Generic[AnyEntry]):
    arrival: int
    served: int = 0
    submitted: int = 0
    waiting: OrderedDict[int, AnyEntry] = field(default_factory=OrderedDict)

    @property
    def rank(self) -> tuple[int, int, int]:
        return (self.served, self.submitted, self.arrival)


class FairQueue(Generic[AnyEntry]):
    """All that wait. A request is forgotten when nothing of it waits."""

    def __init__(self) -> None:
        """Begin empty."""
        self._entries: dict[int, AnyEntry] = {}
        self._requests: dict[int, _Request[AnyEntry]] = {}
        self._by_service = UpdatableHeap()
        self._by_arrival = UpdatableHeap()
        self._aside: list[AnyEntry] = []
        self._arrivals = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._entries)

    @property
    def aside(self) -> int:
        """How many requests are set aside."""
        return len(self._aside)

    @property
    def oldest(self) -> AnyEntry | None:
        """The first to have arrived of those that wait; None if none waits."""
        key = self._by_arrival.first()
        return None if key is None else self._entries[key]

    @property
    def first(self) -> AnyEntry | None:
        """The one that goes next, apart from those set aside; None if none waits.

        One of those set aside, if it is due: it may not be overtaken any more.
        """
        oldest = self.oldest
        if oldest is not None and oldest.is_due:
            return oldest
        for entry in self._aside:
            if entry.is_due:
                return entry
        request = self._by_service.first()
        if request is None:
            return None
        return next(iter(self._requests[request].waiting.values()))

    def add(self, entry: AnyEntry) -> None:
        """Put a newcomer behind the others of its request."""
        self._arrivals += 1
        entry.arrival = self._arrivals
        request = self._insert(entry)
        entry.position = request.submitted
        request.submitted += 1
        self._by_service.push(entry.request, request.rank)

    def put_back(self, entry: AnyEntry) -> None:
        """Put one that was taken back to its place: before the others of its request."""
        request = self._insert(entry)
        request.waiting.move_to_end(entry.key, last=False)
        request.submitted = max(1, request.submitted)
        self._by_service.push(entry.request, request.rank)

    def remove(self, key: int) -> AnyEntry | None:
        """Remove one that waits and return it; None if it does not wait."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._by_arrival.discard(key)
            waiting = self._requests[entry.request].waiting
            del waiting[key]
            if not waiting:
                del self._requests[entry.request]
                self._by_service.discard(entry.request)
        return entry

    def take(self, entries: Collection[AnyEntry]) -> None:
        """Remove those that go together now, and note whom they overtake."""
        for entry in entries:
            self.remove(entry.key)
            request = self._requests.get(entry.request)
            if request is not None:
                request.served += entry.tokens
                self._by_service.push(entry.request, request.rank)
        overtaken = set(self._aside)
        oldest = self.oldest
        if oldest is not None and any(entry.arrival > oldest.arrival for entry in entries):
            overtaken.add(oldest)
        for entry in overtaken:
            entry.overtaken += 1

    def set_aside(self, entry: AnyEntry) -> None:
        """Leave out a request, whose first entry this is, until `restore`."""
        self._aside.append(entry)
        self._by_service.discard(entry.request)

    def restore(self) -> None:
        """Take those that were set aside in again."""
        for entry in self._aside:
            if entry.key in self._entries:
                self._by_service.push(entry.request, self._requests[entry.request].rank)
        self._aside.clear()

    def _insert(self, entry: AnyEntry) -> _Request[AnyEntry]:
        request = self._requests.get(entry.request)
        if request is None:
            request = self._requests[entry.request] = _Request(entry.arrival)
        self._entries[entry.key] = request.waiting[entry.key] = entry
        self._by_arrival.push(entry.key, (entry.arrival,))
        return request
