"""The prefix cache: tokens that follow the same tokens as in another sequence are computed once.

The KV cache keeps whole blocks of tokens for later sequences (`page_pool`). A block's name is a
chained SHA-256: of its own tokens and the name of the block before it, so equal names mean equal
prefixes, and nobody can make two prefixes of one name. The chain begins with the *scope* of a
sequence. Sequences of different scopes share nothing, so the time to a first token tells a caller
nothing about the prompts in other scopes (CVE-2025-46570).

- A block is entered when a forward pass that computed its last token has ended well, whether its
  tokens are of the prompt or of the reply.
- A sequence adopts blocks before its first forward pass, and between any two of its prompt. At
  least one token is left to compute, because the logits after it give the next one.
- If the logits of a sequence are not finite, its blocks are forgotten.

If the model keeps a state, a sequence adopts blocks only up to one after which there is the state
of a sequence (`state_slots`). Blocks are chunks of prefill then, because states are at hand where
those end.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import takewhile

from predictor.engine.generation.forward_passes import Chunk
from predictor.engine.generation.page_pool import PagePool
from predictor.engine.generation.state_slots import StateSlots


class PrefixCache:
    """The names of the blocks of all sequences that have begun; see `scheduler.Prefixes`."""

    def __init__(
        self,
        pages: PagePool,
        tokens_of: Callable[[int], Sequence[int]],
        states: StateSlots | None = None,
        *,
        keeps_tokens: bool = True,
    ) -> None:
        """Begin with no sequence.

        Args:
            pages: The pages of the KV cache.
            tokens_of: Returns the known tokens of a sequence that has begun.
            states: The states of sequences; None if the model keeps none.
            keeps_tokens: Whether the model keeps keys and values. If not, it keeps states.
        """
        self._pages, self._states, self._keeps_tokens = pages, states, keeps_tokens
        self.block_tokens = pages.block_tokens
        self._tokens_of = tokens_of
        self._chains: dict[int, list[bytes]] = {}

    @property
    def shared(self) -> int:
        """Tokens that are cached once for several sequences, counted for all but one of them."""
        return self._pages.shared

    def begin(self, key: int, scope: bytes) -> None:
        """Note a sequence. Its tokens are hashed when it may run."""
        self._chains[key] = [hashlib.sha256(scope).digest()]

    def end(self, key: int) -> None:
        """Forget a sequence, but not its blocks."""
        self.release(key)
        self._chains.pop(key, None)

    def release(self, key: int) -> None:
        """Take the pages of a sequence back, which may run again."""
        self._pages.release(key)

    def extend(self, key: int, cached: int, limit: int) -> int:
        """Give a sequence the blocks that continue it; return how many tokens it has cached then.

        Args:
            key: The sequence.
            cached: How many tokens it has cached.
            limit: Most tokens that it may have cached.
        """
        if cached % self.block_tokens:
            return cached
        last = None
        for name in self._with_state(self._names(key, cached, limit)):
            if self._keeps_tokens and not self._pages.adopt(key, cached, name):
                break
            cached, last = cached + self.block_tokens, name
        if self._states is not None and last is not None:
            self._states.adopt(key, last)
        return cached

    def count_owned(self, key: int, limit: int, blocks: Collection[bytes] | None = None) -> int:
        """Return how many first tokens of a sequence, up to a limit, others own at this time.

        Args:
            key: The sequence.
            limit: Most tokens.
            blocks: The names of the blocks that count as owned; None for all that are.
        """
        is_owned = self._pages.is_owned if blocks is None else blocks.__contains__
        owned = self._with_state(takewhile(is_owned, self._names(key, 0, limit)))
        return self.block_tokens * sum(1 for _ in owned)

    def owned_by(self, keys: Collection[int]) -> Sequence[bytes]:
        """Return the names of the blocks that sequences own, each once for each of its owners."""
        return self._pages.owned_by(keys)

    def blocks(self, chunk: Chunk) -> list[bytes]:
        """Return the names of the blocks that a chunk completes."""
        first = chunk.start - chunk.start % self.block_tokens
        return list(self._names(chunk.key, first, chunk.end))

    def enter(self, chunk: Chunk) -> None:
        """Keep the blocks that a chunk has completed, after a forward pass that ended well."""
        first, names = chunk.start // self.block_tokens, self.blocks(chunk)
        for index, name in enumerate(names, first):
            if self._keeps_tokens:
                self._pages.enter(chunk.key, index, name)
        if self._states is not None and names and not chunk.end % self.block_tokens:
            self._states.keep(chunk.key, names[-1])

    def forget(self, key: int) -> None:
        """Let no sequence adopt the blocks of this one, which may be spoilt."""
        self._pages.withdraw(key)
        if self._states is not None:
            for name in self._chains[key]:
                self._states.drop(name)

    def _names(self, key: int, start: int, end: int) -> Iterator[bytes]:
        """Yield the names of the whole blocks between two tokens, the first of which begins one."""
        for index in range(start // self.block_tokens, end // self.block_tokens):
            yield self._name(key, index)

    def _with_state(self, names: Iterator[bytes]) -> Iterable[bytes]:
        """Return the names of blocks up to the last after which there is a state, if need be."""
        if self._states is None:
            return names
        pages = self._pages
        blocks = list(takewhile(lambda name: pages.has(name) or not self._keeps_tokens, names))
        while blocks and not self._states.has(blocks[-1]):
            blocks.pop()
        return blocks

    def _name(self, key: int, index: int) -> bytes:
        """Return the name of a block, after adding those before it to the sequence's chain."""
        chain = self._chains[key]
        while len(chain) < index + 2:  # the scope comes first
            start = (len(chain) - 1) * self.block_tokens
            tokens = array("i", self._tokens_of(key)[start : start + self.block_tokens])
            chain.append(hashlib.sha256(chain[-1] + tokens.tobytes()).digest())
        return chain[index + 1]
