"""Who goes next: fairness between requests, its bounds, and the work that it takes."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from predictor.engine.fair_queue import MAX_OVERTAKES, Entry, FairQueue


def queue(*requests: int, tokens: int = 1) -> FairQueue[Entry]:
    """Return a queue with entries of these requests, under the keys 0, 1, 2, ..."""
    new: FairQueue[Entry] = FairQueue()
    for key, request in enumerate(requests):
        new.add(Entry(key, request, tokens))
    return new


def go(queue: FairQueue[Entry]) -> int:
    """Let the next one go and return its key."""
    entry = queue.first
    assert entry is not None
    queue.take([entry])
    return entry.key


def order(queue: FairQueue[Entry]) -> list[int]:
    return [go(queue) for _ in range(len(queue))]


def test_requests_of_one_sequence_go_in_order_of_arrival() -> None:
    assert order(queue(7, 3, 5, 1)) == [0, 1, 2, 3]


def test_requests_take_turns_and_keep_their_own_order() -> None:
    assert order(queue(1, 1, 1, 2, 2, 2)) == [0, 3, 1, 4, 2, 5]


def test_a_request_of_one_goes_before_longer_ones_that_have_not_begun() -> None:
    assert order(queue(1, 1, 2, 2, 3)) == [4, 0, 2, 1, 3]


def test_turns_are_counted_in_tokens() -> None:
    q: FairQueue[Entry] = FairQueue()
    for key in range(3):
        q.add(Entry(key, 1, tokens=10))
    for key in range(3, 12):
        q.add(Entry(key, 2, tokens=2))
    # 10 tokens of the first request, then 10 of the second, of five sequences.
    assert order(q) == [0, 3, 4, 5, 6, 7, 1, 8, 9, 10, 11, 2]


def test_a_lone_newcomer_goes_next_or_after_the_one_that_is_due() -> None:
    q = queue(*(request for request in range(32) for _ in range(256)))
    for turn in range(200):
        go(q)
        q.add(Entry(10_000 + turn, 10_000 + turn, 1))
        assert 10_000 + turn in (go(q), go(q))


def test_newcomers_overtake_a_list_no_more_often_than_the_limit() -> None:
    q = queue(*[1] * 20)
    keys = []
    for turn in range(100):
        q.add(Entry(1000 + turn, 1000 + turn, 1))
        keys.append(go(q))
    turns = [index for index, key in enumerate(keys) if key < 1000]
    gaps = [later - earlier for earlier, later in itertools.pairwise(turns)]
    assert set(gaps) == {MAX_OVERTAKES + 1}
    assert [keys[index] for index in turns] == list(range(len(turns)))


def test_those_set_aside_are_left_out_until_they_are_due() -> None:
    q = queue(*range(MAX_OVERTAKES + 4))
    first = q.first
    assert first is not None
    q.set_aside(first)
    assert [go(q) for _ in range(MAX_OVERTAKES)] == list(range(1, MAX_OVERTAKES + 1))
    assert q.first is first
    q.restore()
    assert order(q) == [0, *range(MAX_OVERTAKES + 1, MAX_OVERTAKES + 4)]


def test_one_that_was_put_back_is_before_the_others_of_its_request() -> None:
    q = queue(1, 1, 1)
    entry = q.first
    assert entry is not None
    q.take([entry])
    q.put_back(entry)
    assert (len(q), q.oldest) == (3, entry)
    assert order(q) == [0, 1, 2]


def test_one_that_was_put_back_alone_is_at_its_place_in_line() -> None:
    q = queue(1, 2, 3)
    entry = q.first
    assert entry is not None
    q.take([entry])
    q.put_back(entry)
    assert order(q) == [0, 1, 2]


class Naive:
    """The rules of the queue without any structure: everything is searched each time."""

    def __init__(self) -> None:
        self.waiting: list[Entry] = []
        self.served: Counter[int] = Counter()
        self.submitted: Counter[int] = Counter()
        self.began: dict[int, int] = {}

    def add(self, entry: Entry) -> None:
        if not any(other.request == entry.request for other in self.waiting):
            self.began[entry.request] = entry.arrival
            self.served[entry.request] = self.submitted[entry.request] = 0
        self.submitted[entry.request] += 1
        self.waiting.append(entry)

    def first(self) -> Entry | None:
        if not self.waiting:
            return None
        if self.waiting[0].overtaken >= MAX_OVERTAKES:
            return self.waiting[0]
        return min(self.waiting, key=lambda entry: (*self.rank(entry.request), entry.arrival))

    def rank(self, request: int) -> tuple[int, int, int]:
        return (self.served[request], self.submitted[request], self.began[request])

    def take(self, entry: Entry) -> None:
        self.waiting.remove(entry)
        self.served[entry.request] += entry.tokens


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 5), st.integers(1, 9)),
            st.tuples(st.just("go"), st.just(0), st.just(0)),
            st.tuples(st.just("remove"), st.integers(0, 60), st.just(0)),
        ),
        max_size=150,
    )
)
def test_the_order_is_that_of_the_rules_after_any_changes(
    steps: list[tuple[str, int, int]],
) -> None:
    q, naive, keys = FairQueue[Entry](), Naive(), 0
    for kind, value, tokens in steps:
        if kind == "add":
            entry = Entry(keys, value, tokens)
            keys += 1
            q.add(entry)
            naive.add(entry)
        elif kind == "remove":
            removed = q.remove(value)
            assert (removed is None) == (value not in [entry.key for entry in naive.waiting])
            naive.waiting = [entry for entry in naive.waiting if entry.key != value]
        elif (entry := q.first) is not None:
            assert entry is naive.first()
            q.take([entry])
            naive.take(entry)
        assert len(q) == len(naive.waiting)
        assert q.first is naive.first()
        assert q.oldest is (naive.waiting[0] if naive.waiting else None)
