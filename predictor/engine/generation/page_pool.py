"""The pages of layers that keep whole sequences, some of which several sequences own.

A *block* is a fixed number of consecutive pages of a sequence with all their keys and values. It
is entered under a digest of its tokens and of all tokens before them (`prefix_cache`), and other
sequences with the same tokens may own it too. Nobody writes to a block. Once it has no owner, it
stays until its pages are needed; the block that was left first goes first.

Blocks that no sequence owns count as free pages, so sequences have as many pages as without them.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from predictor.engine.generation.kv_accounting import BLOCK_TOKENS
from predictor.engine.generation.pages import PageTable

MAX_BLOCKS = 2**16
"""Most blocks, each of which takes about 600 bytes of main memory besides its pages. They hold a
million tokens."""

_EVICTED_TOKENS, _LEAST_POOL_PART = 256, 32
"""Tokens of blocks that go at a time, and the part of the pool that they are at most. Those that go
together mostly come from one sequence, so the next one gets consecutive pages."""


@dataclass(slots=True, eq=False)
class _Block:
    """Pages that are complete.

    Attributes:
        digest: The digest that they are entered under.
        pages: The pages.
        owners: How many sequences own them.
    """

    digest: bytes
    pages: array[int]
    owners: int = 1


class PagePool(PageTable):
    """The pages of layers that keep whole sequences.

    Attributes:
        block_tokens: Pages of a block.
        shared: Tokens that further owners of blocks did not need pages for.
    """

    def __init__(self, pages: int, max_length: int, block_tokens: int = BLOCK_TOKENS) -> None:
        """Begin with all pages free.

        Args:
            pages: See `PageTable`.
            max_length: See `PageTable`.
            block_tokens: Pages of a block.
        """
        super().__init__(pages, max_length)
        self.block_tokens = block_tokens
        self.shared = 0
        self._evicted_tokens = min(_EVICTED_TOKENS, pages // _LEAST_POOL_PART)
        self._blocks: dict[bytes, _Block] = {}
        self._unowned: OrderedDict[bytes, _Block] = OrderedDict()
        self._blocks_of: defaultdict[int, dict[int, _Block]] = defaultdict(dict)

    @property
    def free(self) -> int:
        """How many pages no sequence owns."""
        return self._free.count + self.block_tokens * len(self._unowned)

    def take(self, key: int, end: int) -> torch.Tensor:
        """Return the pages of a sequence's first tokens; see `PageTable`. Blocks go for them."""
        lacking = end - self.count(key)
        if self._free.count < lacking:
            wanted = max(lacking, self._evicted_tokens)
            while self._free.count < wanted and self._unowned:
                self._evict()
        return super().take(key, end)

    def release(self, key: int) -> None:
        """Take the pages of a sequence back. Its blocks stay for others, the last to go first."""
        own, blocks = self._owned.pop(key, None), self._blocks_of.pop(key, {})
        if own is None:
            return
        is_private = torch.ones(own.end, dtype=torch.bool)
        for index, block in reversed(blocks.items()):
            is_private[index * self.block_tokens :][: self.block_tokens] = False
            self._leave(block)
        self._free.put_back(own.pages[: own.end][is_private])

    def enter(self, key: int, index: int, digest: bytes) -> None:
        """Note that a block of a sequence is complete. It stays private if there is one like it.

        Args:
            key: The sequence.
            index: The block's index in the sequence.
            digest: The digest of its tokens and those before.
        """
        if len(self._blocks) >= MAX_BLOCKS and self._unowned:
            self._evict()
        if digest in self._blocks or len(self._blocks) >= MAX_BLOCKS:
            return
        pages = self._owned[key].pages[index * self.block_tokens :][: self.block_tokens]
        block = _Block(digest, array("q", pages.tolist()))
        self._blocks[digest] = self._blocks_of[key][index] = block

    def adopt(self, key: int, start: int, digest: bytes) -> bool:
        """Give a sequence a block as its next pages; return whether there is such a block.

        Args:
            key: The sequence.
            start: How many pages it has.
            digest: The block's digest.
        """
        block = self._blocks.get(digest)
        if block is None or self.count(key) != start:  # it has pages of a pass that failed
            return False
        if block.owners:
            self.shared += self.block_tokens
        else:
            del self._unowned[digest]
        block.owners += 1
        self._blocks_of[key][start // self.block_tokens] = block
        self._append(key, torch.tensor(block.pages))
        return True

    def has(self, digest: bytes) -> bool:
        """Return whether there is a block of a digest."""
        return digest in self._blocks

    def is_owned(self, digest: bytes) -> bool:
        """Return whether a sequence owns the block of a digest."""
        block = self._blocks.get(digest)
        return block is not None and block.owners > 0

    def owned_by(self, keys: Iterable[int]) -> list[bytes]:
        """Return the digests of the blocks that sequences own, each once for each of its owners."""
        return [block.digest for key in keys for block in self._blocks_of.get(key, {}).values()]

    def withdraw(self, key: int) -> None:
        """Let no sequence adopt the blocks of this one from now on."""
        for block in self._blocks_of.get(key, {}).values():
            if self._blocks.get(block.digest) is block:
                del self._blocks[block.digest]

    def _leave(self, block: _Block) -> None:
        block.owners -= 1
        if block.owners:
            self.shared -= self.block_tokens
        elif self._blocks.get(block.digest) is block:
            self._unowned[block.digest] = block
        else:
            self._free.put_back(torch.tensor(block.pages))

    def _evict(self) -> None:
        _, block = self._unowned.popitem(last=False)
        del self._blocks[block.digest]
        self._free.put_back(torch.tensor(block.pages))
