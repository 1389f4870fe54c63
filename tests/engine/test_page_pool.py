"""Pages of the KV cache: their owners, their blocks, and which blocks go first."""

from __future__ import annotations

import pytest
import torch

from predictor.engine.generation import page_pool
from predictor.engine.generation.kv_accounting import BLOCK_TOKENS, PADDING_PAGES
from predictor.engine.generation.page_pool import PagePool


def pool(blocks: int) -> PagePool:
    """Return a pool of so many blocks, for sequences of as many."""
    tokens = blocks * BLOCK_TOKENS
    return PagePool(tokens + PADDING_PAGES, tokens)


def compute(pages: PagePool, key: int, *digests: bytes) -> list[int]:
    """Give a sequence pages for blocks that it computes, and enter them."""
    pages.take(key, len(digests) * BLOCK_TOKENS)
    for index, digest in enumerate(digests):
        pages.enter(key, index, digest)
    return pages.owned(key)


def adopt(pages: PagePool, key: int, *digests: bytes) -> int:
    """Let a sequence adopt blocks from its first token on; return how many it could."""
    for index, digest in enumerate(digests):
        if not pages.adopt(key, index * BLOCK_TOKENS, digest):
            return index
    return len(digests)


def test_a_block_has_several_owners_and_its_pages_are_taken_once() -> None:
    pages = pool(4)
    owned = compute(pages, 1, b"a", b"b")
    assert adopt(pages, 2, b"a", b"b", b"c") == 2
    assert pages.owned(2) == owned
    assert (pages.free, pages.shared) == (2 * BLOCK_TOKENS, 2 * BLOCK_TOKENS)
    assert pages.take(2, 3 * BLOCK_TOKENS).tolist()[: len(owned)] == owned
    pages.release(1)
    assert (pages.free, pages.shared) == (BLOCK_TOKENS, 0)
    pages.release(2)
    assert pages.free == 4 * BLOCK_TOKENS


def test_a_sequence_that_began_in_a_pass_adopts_blocks_between_passes() -> None:
    pages = pool(4)
    with torch.inference_mode():
        owned = compute(pages, 1, b"a", b"b")
        own = compute(pages, 2, b"a")
    assert pages.adopt(2, BLOCK_TOKENS, b"b")
    assert pages.owned(2) == own + owned[BLOCK_TOKENS:]
    pages.release(2)
    with torch.inference_mode():
        pages.take(2, BLOCK_TOKENS)
        pages.release(1)
    pages.release(2)
    assert pages.free == 4 * BLOCK_TOKENS


def test_a_block_stays_after_its_owner_and_is_adopted_again() -> None:
    pages = pool(2)
    owned = compute(pages, 1, b"a")
    pages.release(1)
    assert pages.free == 2 * BLOCK_TOKENS
    assert adopt(pages, 2, b"a") == 1
    assert pages.owned(2) == owned
    assert (pages.free, pages.shared) == (BLOCK_TOKENS, 0)


def test_the_block_that_was_left_first_goes_first_and_of_a_sequence_the_last() -> None:
    pages = pool(4)
    compute(pages, 1, b"a", b"b")
    pages.release(1)
    compute(pages, 2, b"c", b"d")
    pages.release(2)
    pages.take(3, 1)
    assert [pages.adopt(4, 0, name) for name in (b"b", b"c")] == [False, True]
    pages.take(5, 2 * BLOCK_TOKENS)  # c is owned
    assert [pages.adopt(6, 0, name) for name in (b"a", b"d")] == [False, False]


def test_a_block_with_an_owner_never_goes() -> None:
    pages = pool(2)
    compute(pages, 1, b"a")
    with pytest.raises(MemoryError, match="17 KV pages needed, 16 are free"):
        pages.take(2, BLOCK_TOKENS + 1)
    pages.take(2, BLOCK_TOKENS)
    assert adopt(pages, 3, b"a") == 1


def test_of_two_equal_blocks_one_is_kept() -> None:
    pages = pool(3)
    first, second = compute(pages, 1, b"a"), compute(pages, 2, b"a")
    assert set(first).isdisjoint(second)
    pages.release(2)
    pages.release(1)
    assert adopt(pages, 3, b"a") == 1
    assert pages.owned(3) == first
    pages.take(4, 2 * BLOCK_TOKENS)  # all that is not owned


def test_forgotten_blocks_are_adopted_by_nobody_and_their_pages_come_back() -> None:
    pages = pool(2)
    compute(pages, 1, b"a")
    assert adopt(pages, 2, b"a") == 1
    pages.withdraw(2)
    assert adopt(pages, 3, b"a") == 0
    pages.release(1)
    assert (pages.free, pages.shared) == (BLOCK_TOKENS, 0)
    pages.release(2)
    pages.take(3, 2 * BLOCK_TOKENS)


def test_a_sequence_with_pages_of_a_pass_that_failed_adopts_nothing() -> None:
    pages = pool(3)
    compute(pages, 1, b"a")
    pages.take(2, 3)
    assert adopt(pages, 2, b"a") == 0


def test_there_are_no_more_blocks_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_pool, "MAX_BLOCKS", 2)
    pages = pool(4)
    compute(pages, 1, b"a", b"b", b"c")
    assert adopt(pages, 2, b"a", b"b", b"c") == 2
    pages.release(1)
    pages.release(2)
    compute(pages, 3, b"d")
    assert [pages.adopt(4, 0, name) for name in (b"b", b"a")] == [False, True]
