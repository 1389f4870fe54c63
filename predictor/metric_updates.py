"""Changes of metrics that one process records and another one applies.

The model runs in a process of its own, and `/metrics` is answered by another. The first has
children of metrics that record their changes; the second makes the same changes to its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from prometheus_client.metrics import MetricWrapperBase

from predictor import metrics


class Update(NamedTuple):
    """A call of a method of a metric's child.

    Attributes:
        metric: The metric's name.
        labels: The labels' values.
        method: ``"inc"``, ``"set"`` or ``"observe"``; empty if the child was only made.
        value: Its argument.
    """

    metric: str
    labels: tuple[str, ...]
    method: str
    value: float


class MetricRecorder:
    """Records the changes of metrics; any thread may make them."""

    def __init__(self) -> None:
        """Begin with no change."""
        self._updates: deque[Update] = deque()

    def child(self, metric: MetricWrapperBase, *labels: str) -> RecordedChild:
        """Return a child of a metric whose changes are recorded; see `metrics.Labelled`."""
        child = RecordedChild(_name(metric), labels, self._updates)
        self._updates.append(
            Update(child.metric, labels, "", 0)
        )  # shows it before its first change
        return child

    def take(self) -> list[Update]:
        """Return the changes since the last call, without those that a later one made void."""
        recorded = [self._updates.popleft() for _ in range(len(self._updates))]
        return list(_merged(recorded))


@dataclass(frozen=True, slots=True)
class RecordedChild:
    """A metric's child, as far as this package uses it."""

    metric: str
    labels: tuple[str, ...]
    updates: deque[Update]

    def inc(self, amount: float = 1) -> None:
        """Record an increment."""
        self._record("inc", amount)

    def set(self, value: float) -> None:
        """Record a value."""
        self._record("set", value)

    def observe(self, amount: float) -> None:
        """Record an observation."""
        self._record("observe", amount)

    def _record(self, method: str, value: float) -> None:
        self.updates.append(Update(self.metric, self.labels, method, value))


def apply_updates(updates: Iterable[Update]) -> None:
    """Make recorded changes to the metrics of this process."""
    for update in updates:
        child = _METRICS[update.metric].labels(*update.labels)
        if update.method:
            getattr(child, update.method)(update.value)


def _merged(updates: Iterable[Update]) -> Iterator[Update]:
    """Yield the same changes, with one for each counter and gauge."""
    last: dict[tuple[str, tuple[str, ...], str], float] = {}
    for update in updates:
        key = (update.metric, update.labels, update.method)
        if update.method in ("observe", ""):
            yield update
        elif update.method == "inc":
            last[key] = last.get(key, 0) + update.value
        else:
            last[key] = update.value
    for (metric, labels, method), value in last.items():
        yield Update(metric, labels, method, value)


def _name(metric: Any) -> str:
    (described,) = metric.describe()
    return str(described.name)


_METRICS = {
    _name(value): value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)
}
