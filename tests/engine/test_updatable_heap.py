"""The heap whose items are removed and ranked anew, against a dictionary that is searched."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from predictor.engine.updatable_heap import UpdatableHeap

items = st.integers(0, 20)
ranks = st.tuples(st.integers(0, 5), st.integers(0, 5))
steps = st.lists(
    st.one_of(st.tuples(st.just("push"), items, ranks), st.tuples(st.just("discard"), items)),
    max_size=200,
)


@given(steps)
def test_the_first_has_the_lowest_rank_after_any_changes(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    heap, ranked = UpdatableHeap(), dict[int, tuple[int, ...]]()
    for kind, item, *rank in steps:
        if kind == "push":
            heap.push(item, rank[0])
            ranked[item] = rank[0]
        else:
            heap.discard(item)
            ranked.pop(item, None)
        assert len(heap) == len(ranked)
        assert heap.first() == min(ranked, key=lambda one: (ranked[one], one), default=None)


def test_entries_that_were_replaced_take_bounded_memory() -> None:
    heap = UpdatableHeap()
    heap.push(0, (0,))  # it stays the first, so that the others never come to the top
    for item in range(1, 5000):
        heap.push(item, (item,))
        heap.push(item, (item, 1))
        heap.discard(item)
        assert len(heap._heap) <= 100
    assert (len(heap), heap.first()) == (1, 0)
