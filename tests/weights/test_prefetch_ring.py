"""The ring: the order of fetches, and the blocks that are acquired."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from predictor.weights.streaming.prefetch_ring import PrefetchRing


class Slot:
    """Remembers which block it holds."""

    def __init__(self) -> None:
        self.block: int | None = None
        self.lent = False


class Source:
    """Fetches blocks and notes which; fails on chosen ones."""

    def __init__(self, failing: Sequence[int]) -> None:
        self.fetched: list[int] = []
        self.failing = set(failing)
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self, block: int, slot: Slot) -> None:
        assert not slot.lent, "a slot is filled while it is used"
        assert self.gate.wait(10)
        self.fetched.append(block)
        slot.block = None
        if block in self.failing:
            raise OSError(5, "the disk is gone")
        slot.block = block


@contextmanager
def opened(
    order: Sequence[int], slots: int = 2, failing: Sequence[int] = ()
) -> Iterator[tuple[PrefetchRing[Slot], Source]]:
    slots_ = [Slot() for _ in range(slots)]
    source = Source(failing)
    ring: PrefetchRing[Slot] = PrefetchRing(order, slots_, source.fetch)
    try:
        yield ring, source
    finally:
        source.gate.set()
        ring.close()


def use(ring: PrefetchRing[Slot], block: int) -> None:
    slot, waited = ring.acquire(block)
    assert waited >= 0
    slot.lent = True
    assert slot.block == block
    slot.lent = False
    ring.release(slot)


def settled(source: Source) -> list[int]:
    """Return the fetched blocks, once the ring is idle."""
    before = -1
    while len(source.fetched) != before:
        before = len(source.fetched)
        time.sleep(0.05)
    return source.fetched


def test_blocks_come_in_their_order_round_after_round_each_fetched_once() -> None:
    with opened(range(5)) as (ring, source):
        for _ in range(3):
            for block in range(5):
                use(ring, block)
        assert settled(source) == [0, 1, 2, 3, 4] * 3 + [0, 1]


def test_the_first_blocks_of_the_next_round_are_there_before_it_begins() -> None:
    with opened(range(3)) as (ring, source):
        for block in range(3):
            use(ring, block)
        settled(source)
        source.gate.clear()
        slots = [ring.acquire(block)[0] for block in (0, 1)]
        assert [slot.block for slot in slots] == [0, 1]


def test_no_more_is_held_than_there_are_slots() -> None:
    with opened(range(9), slots=3) as (ring, source):
        assert settled(source) == [0, 1, 2]
        slot, _ = ring.acquire(0)
        assert settled(source) == [0, 1, 2]
        ring.release(slot)
        assert settled(source) == [0, 1, 2, 3]


def test_another_order_is_learned() -> None:
    with opened(range(4)) as (ring, source):
        for _ in range(2):
            for block in (3, 1, 2, 0):
                use(ring, block)
        settled(source)
        source.fetched.clear()
        for block in (3, 1, 2, 0):
            use(ring, block)
        assert settled(source) == [2, 0, 3, 1]  # 3 and 1 were there


def test_the_acquired_block_is_always_the_requested_one() -> None:
    chance = random.Random(1)
    with opened(range(6)) as (ring, _):
        for _ in range(2000):
            use(ring, chance.randrange(6))


def test_a_block_that_cannot_be_fetched_raises_and_can_be_tried_again() -> None:
    with opened(range(3), failing=[1]) as (ring, source):
        use(ring, 0)
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                ring.acquire(1)
        settled(source)
        source.failing.clear()
        with pytest.raises(OSError, match="the disk is gone"):  # of the try that was under way
            ring.acquire(1)
        for block in (1, 2, 0, 1, 2):
            use(ring, block)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_block_that_is_called_again_and_again_is_fetched_once(slots: int) -> None:
    with opened([0], slots) as (ring, source):
        for _ in range(5):
            use(ring, 0)
        assert settled(source) == [0]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_calls_of_a_block_in_a_row_take_one_fetch(slots: int) -> None:
    passes = [0, 0, 0, 1, 1, 1]  # ALBERT with two groups of layers
    with opened([0, 1], slots) as (ring, source):
        for block in passes * 3:
            use(ring, block)
        settled(source)
        source.fetched.clear()
        for block in passes * 2:
            use(ring, block)
        assert len(settled(source)) <= 4 + slots


def test_a_block_that_is_shared_between_others_is_expected_where_it_comes() -> None:
    passes = [0, 1, 9, 2, 3, 9, 4, 9]  # Zamba's one block after some of the others
    with opened([0, 1, 2, 3, 4, 9]) as (ring, source):
        for block in passes * 2:
            use(ring, block)
        settled(source)
        source.fetched.clear()
        for block in passes:
            use(ring, block)
        assert settled(source) == [*passes[2:], *passes[:2]]  # two were there


def test_passes_of_two_kinds_take_one_wrong_expectation_each() -> None:
    """An encoder's blocks come between many passes of the decoder's."""
    encoder, decoder = [0, 1, 2], [3, 4, 5]
    with opened(range(6)) as (ring, source):
        for _ in range(2):
            for block in encoder + decoder * 5:
                use(ring, block)
        settled(source)
        source.fetched.clear()
        for block in encoder + decoder * 5:
            use(ring, block)
        # Two of the decoder's were there in vain, and as many are when the pass has ended.
        assert len(settled(source)) <= 18 + 2 + 2


def test_a_fetch_that_takes_long_is_logged_once_for_each_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source([])
    source.gate.clear()
    ring = PrefetchRing(
        range(3), [Slot()], source.fetch, progress=lambda: "Reading h.0", seconds_to_log=0.01
    )
    opening = threading.Timer(0.3, source.gate.set)
    opening.start()
    ring.acquire(0)
    ring.close()
    opening.join()
    assert [record.message for record in caplog.records] == ["Reading h.0"]
