"""Which experts of one layer keep their slots.

Two classic rules are each bad for some routings. Recency (LRU) follows a conversation, but with
fewer slots than a cycle has experts it evicts each just before its next use. Frequency (LFU with
ageing) keeps the popular experts, but follows a change slowly. So both are simulated, which reads
nothing, and the one that would have had more hits of late is followed. The technique is that of
ACME, "adaptive caching using multiple experts" (Ari et al., 2002), with two.

Integers only: the module knows no tensors, no slots and no files.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

_AGEING = 6
"""A use loses 1/64 of its weight with each pass, half of it in 44 passes."""

_FIRST_WEIGHT, _WEIGHT_LIMIT = 1 << 16, 1 << 48
"""The weight of a use grows instead of all earlier ones shrinking, up to a limit in bits."""

_MEMORY = 6
"""The comparison of the two rules forgets 1/64 with each pass."""

_HIT = 1 << 16
"""One hit in that comparison, so large that its decay does not round to nothing."""


@dataclass(frozen=True, slots=True)
class Step:
    """The effect of one pass on a layer's experts.

    Attributes:
        hits: Used, and cached before.
        misses: Used, and not cached before.
        admitted: Misses that stay after the pass.
        evicted: Cached experts that leave; after the pass, as they may be used in it.
    """

    hits: tuple[int, ...]
    misses: tuple[int, ...]
    admitted: tuple[int, ...]
    evicted: tuple[int, ...]


class SlotPolicy:
    """Decides which experts of a layer are kept between passes."""

    def __init__(self, experts: int, quota: int) -> None:
        """Begin with nothing cached.

        Args:
            experts: Experts of the layer.
            quota: The most experts that are kept; may be 0.
        """
        self._experts, self._quota = experts, min(quota, experts)
        self._cached: set[int] = set()
        self._recency = _Recency(experts, self._quota)
        self._frequency = _Frequency(experts, self._quota)
        self._recency_lead = 0

    @property
    def cached(self) -> Collection[int]:
        """The experts that are kept."""
        return self._cached

    def step(self, touched: Sequence[int]) -> Step:
        """Record a pass, and decide which experts stay after it.

        Args:
            touched: The distinct experts that the pass uses, in any order.
        """
        cached = self._cached
        hits = tuple([expert for expert in touched if expert in cached])
        misses = tuple([expert for expert in touched if expert not in cached])
        kept = self._simulate(touched)
        admitted, evicted = self._follow(kept, misses) if misses else ((), ())
        return Step(hits, misses, admitted, evicted)

    def forget(self, expert: int) -> None:
        """Take back an admission, because the expert could not be read."""
        self._cached.discard(expert)

    def _simulate(self, touched: Sequence[int]) -> Collection[int]:
        """Step both rules, and return the experts that the better one keeps."""
        recency, frequency, lead = self._recency, self._frequency, self._recency_lead
        lead_gained = recency.step(touched) - frequency.step(touched)
        self._recency_lead = lead - (lead >> _MEMORY) + lead_gained * _HIT
        return recency.kept if self._recency_lead >= 0 else frequency.kept

    def _follow(
        self, kept: Collection[int], misses: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return which misses to admit and which experts to evict, to become like `kept`."""
        cached, heat = self._cached, self._frequency.heat
        admitted = [expert for expert in misses if expert in kept]
        room = self._quota - len(cached) - len(admitted)
        evicted: list[int] = []
        if room > 0:  # what could not be read left it
            admitted += [expert for expert in misses if expert not in kept][:room]
        elif room < 0:
            spare = [expert for expert in cached if expert not in kept]
            evicted = sorted(spare, key=heat.__getitem__)[:-room]
        cached.difference_update(evicted)
        cached.update(admitted)
        return tuple(admitted), tuple(evicted)


class _Recency:
    """Keeps the experts that were used last."""

    def __init__(self, experts: int, quota: int) -> None:
        self._experts, self._quota = experts, quota
        self.kept: dict[int, None] = {}
        """The experts, the one whose last use is the oldest first."""

    def step(self, touched: Sequence[int]) -> int:
        """Record a pass; return how many of its experts were kept before."""
        kept = self.kept
        hits = [expert for expert in touched if expert in kept]
        # A pass that uses most experts, as a prefill does, does not tell which are in use.
        if 2 * len(touched) > self._experts and len(kept) == self._quota:
            return len(hits)
        for expert in hits:
            del kept[expert]
            kept[expert] = None
        misses = [expert for expert in touched if expert not in kept]
        for expert in misses[: self._quota - len(hits)]:
            if len(kept) == self._quota:
                del kept[next(iter(kept))]
            kept[expert] = None
        return len(hits)


class _Frequency:
    """Keeps the experts with the most uses, of which older ones weigh less.

    A miss is compared by its earlier uses alone. Its present use would let each expert of a cycle
    take the place of one that is about to be used.
    """

    def __init__(self, experts: int, quota: int) -> None:
        self._quota = quota
        self.kept: set[int] = set()
        self.heat = [0] * experts
        """The weight of all uses of each expert."""
        self._weight = _FIRST_WEIGHT
        self._least_heat = 0
        """No kept expert has less, so that most misses are refused without a search."""

    def step(self, touched: Sequence[int]) -> int:
        """Record a pass; return how many of its experts were kept before."""
        kept, heat, weight = self.kept, self.heat, self._weight
        misses = [expert for expert in touched if expert not in kept]
        hotter = [expert for expert in misses if heat[expert] > self._least_heat]
        for expert in touched:
            heat[expert] += weight
        if len(kept) < self._quota:
            kept.update(misses[: self._quota - len(kept)])
        elif hotter and kept:
            self._replace_coldest(hotter)
        self._age()
        return len(touched) - len(misses)

    def _replace_coldest(self, misses: list[int]) -> None:
        """Keep the misses that had more uses before this pass, in place of the coldest experts."""
        heat, kept, weight = self.heat, self.kept, self._weight
        misses.sort(key=heat.__getitem__, reverse=True)
        coldest = sorted(kept, key=heat.__getitem__)
        for miss, victim in zip(misses, coldest, strict=False):
            self._least_heat = heat[victim]
            if heat[miss] - weight <= heat[victim]:
                break
            kept.remove(victim)
            kept.add(miss)

    def _age(self) -> None:
        """Let later uses weigh more; what matters is only how uses compare."""
        self._weight += self._weight >> _AGEING
        if self._weight > _WEIGHT_LIMIT:
            shift = (_WEIGHT_LIMIT // _FIRST_WEIGHT).bit_length() - 1
            self._weight >>= shift
            self._least_heat >>= shift
            self.heat = [heat >> shift for heat in self.heat]
