"""Two fair queues, of which one goes first."""

from __future__ import annotations

from predictor.engine.fair_queue import Entry
from predictor.engine.priority_queue import PriorityQueue


def queue(*bulk: bool) -> PriorityQueue[Entry]:
    new: PriorityQueue[Entry] = PriorityQueue()
    for key, is_bulk in enumerate(bulk):
        new.add(Entry(key, key, 1, is_bulk))
    return new


def in_order(waiting: PriorityQueue[Entry]) -> list[int]:
    order = []
    while (first := waiting.first) is not None:
        waiting.take([first])
        order.append(first.key)
    return order


def test_bulk_work_goes_last_and_each_kind_by_arrival() -> None:
    assert in_order(queue(True, False, True, False)) == [1, 3, 0, 2]


def test_bulk_work_is_never_due_before_others() -> None:
    waiting = queue(True)
    for key in range(1, 30):
        waiting.add(Entry(key, key, 1))
        assert waiting.first is not None
        assert waiting.first.key == key
        waiting.take([waiting.first])

    assert in_order(waiting) == [0]


def test_nothing_is_first_while_what_others_wait_for_is_set_aside() -> None:
    waiting = queue(True, False)
    assert waiting.first is not None
    waiting.set_aside(waiting.first)

    assert waiting.first is None
    waiting.restore()
    assert in_order(waiting) == [1, 0]


def test_entries_are_removed_and_put_back_wherever_they_are() -> None:
    waiting = queue(True, False, True)
    removed = waiting.remove(2)

    assert removed is not None
    assert waiting.remove(7) is None
    assert len(waiting) == 2
    assert waiting.oldest is not None
    assert waiting.oldest.key == 1
    waiting.put_back(removed)
    assert in_order(waiting) == [1, 0, 2]
