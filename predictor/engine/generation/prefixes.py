"""The prefixes that sequences have in common, as lengths and names; no tokens and tensors here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from predictor.engine.generation.forward_passes import Chunk
from predictor.engine.generation.kv_accounting import BLOCK_TOKENS


class Prefixes(Protocol):
    """The computed tokens that sequences have in common; see `prefix_cache.PrefixCache`."""

    @property
    def block_tokens(self) -> int:
        """Tokens that sequences have in common or not as a whole."""
        ...

    @property
    def shared(self) -> int:
        """Tokens that are cached once for several sequences, counted for all but one of them."""
        ...

    def begin(self, key: int, scope: bytes) -> None:
        """Note a sequence, which shares prefixes with those of the same scope."""
        ...

    def end(self, key: int) -> None:
        """Forget a sequence, but not what it has computed."""
        ...

    def release(self, key: int) -> None:
        """Take back what a sequence has cached. It may run again."""
        ...

    def extend(self, key: int, cached: int, limit: int) -> int:
        """Give a sequence computed tokens, up to a limit; return how many it has cached then."""
        ...

    def count_owned(self, key: int, limit: int, blocks: Collection[bytes] | None = None) -> int:
        """Return how many first tokens of a sequence, up to a limit, others own at this time.

        Args:
            key: The sequence.
            limit: Most tokens.
            blocks: The names of the blocks that count as owned; None for all that are.
        """
        ...

    def owned_by(self, keys: Collection[int]) -> Sequence[bytes]:
        """Return the names of the blocks that sequences own, each once for each of its owners."""
        ...

    def blocks(self, chunk: Chunk) -> Collection[bytes]:
        """Return the names of the blocks that a chunk completes; equal names mean equal tokens."""
        ...

    def enter(self, chunk: Chunk) -> None:
        """Keep the blocks that a chunk has completed, after a forward pass that ended well."""
        ...

    def forget(self, key: int) -> None:
        """Let no sequence use the blocks of this one, which may be spoilt."""
        ...


class NoPrefixes:
    """Sequences that share nothing. Their runner takes back what they have cached."""

    block_tokens, shared = BLOCK_TOKENS, 0

    def begin(self, key: int, scope: bytes) -> None:
        """Do nothing."""

    def end(self, key: int) -> None:
        """Do nothing."""

    def release(self, key: int) -> None:
        """Do nothing."""

    def extend(self, key: int, cached: int, limit: int) -> int:  # noqa: ARG002
        """Return how many tokens the sequence has cached."""
        return cached

    def count_owned(
        self,
        key: int,  # noqa: ARG002
        limit: int,  # noqa: ARG002
        blocks: Collection[bytes] | None = None,  # noqa: ARG002
    ) -> int:
        """Return 0."""
        return 0

    def owned_by(self, keys: Collection[int]) -> Sequence[bytes]:  # noqa: ARG002
        """Return nothing."""
        return ()

    def blocks(self, chunk: Chunk) -> Collection[bytes]:  # noqa: ARG002
        """Return nothing."""
        return ()

    def enter(self, chunk: Chunk) -> None:
        """Do nothing."""

    def forget(self, key: int) -> None:
        """Do nothing."""


def without_followers(
    chunks: Sequence[Chunk], prefixes: Prefixes, breakeven_tokens: int
) -> list[Chunk]:
    """Return the chunks without those that wait for a chunk before them to compute their tokens.

    To wait takes one forward pass. So chunks do not wait as long as the tokens that they compute
    again take no longer than that together.

    Args:
        chunks: Chunks of prompts, by priority.
        prefixes: Names their blocks.
        breakeven_tokens: Tokens that take as long to compute as one forward pass over the weights.
    """
    kept: list[Chunk] = []
    names: set[bytes] = set()
    repeated = 0
    for chunk in chunks:
        own = prefixes.blocks(chunk)
        common = prefixes.block_tokens * len(names.intersection(own))
        if repeated + common <= breakeven_tokens or not common:
            repeated += common
            names.update(own)
            kept.append(chunk)
    return kept
