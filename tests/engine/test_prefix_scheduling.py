"""The scheduler with prefixes: exact steps, then the rules of any run, with pages and contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits
from predictor.engine.generation.kv_accounting import BLOCK_TOKENS, PADDING_PAGES
from predictor.engine.generation.page_pool import PagePool
from predictor.engine.generation.prefix_cache import PrefixCache
from predictor.engine.generation.scheduler import Scheduler, Step
from predictor.engine.generation.state_slots import SlotLayer, StateSlots
from tests.engine.test_scheduler import Simulation, compute, keys

SYSTEM = list(range(1000, 1064))
"""Four blocks that prompts begin with."""


class Shared:
    """A scheduler of sequences that share prefixes, and the tokens of these."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.pages = PagePool(limits.kv_tokens + PADDING_PAGES, limits.kv_tokens)
        self.prefixes = PrefixCache(self.pages, self.tokens.__getitem__)
        self.scheduler = Scheduler(limits, self.prefixes)

    def add(self, *prompts: Sequence[int], scope: bytes = b"") -> None:
        """Put prompts in line, under the next keys."""
        for prompt in prompts:
            key = len(self.tokens)
            self.tokens[key] = list(prompt)
            self.scheduler.add(key, len(prompt))
            self.prefixes.begin(key, scope)

    def advance(self) -> Step:
        """Plan a step and compute it; every sequence with a next token continues."""
        step = self.scheduler.plan()
        for rows in step.batches:
            for chunk in rows:
                self.pages.take(chunk.key, chunk.end)
                self.prefixes.enter(chunk)
        for key in compute(self.scheduler, step):
            self.scheduler.append_token(key)
            self.tokens[key].append(7)
        return step


def shared(*prompts: Sequence[int], kv: int = 1000, chunk: int = 64, **limits: int) -> Shared:
    new = Shared(SchedulerLimits(kv, 16, chunk, **limits))
    new.add(*prompts)
    return new


def test_a_prompt_is_computed_from_where_an_earlier_one_differs() -> None:
    s = shared([*SYSTEM, 1, 2])
    s.advance()
    s.advance()
    s.add([*SYSTEM[:40], 3])
    # 40 tokens are equal, which are two whole blocks.
    assert Chunk(1, 32, 9) in [chunk for rows in s.advance().batches for chunk in rows]


def test_a_token_is_left_to_compute_of_a_prompt_that_is_cached_whole() -> None:
    s = shared(SYSTEM)
    s.advance()
    s.add(SYSTEM)
    assert s.advance().batches[0] == (Chunk(1, 48, 16),)


def test_prompts_that_begin_alike_wait_for_the_first_and_go_on_together() -> None:
    # 150 tokens, of which 144 are blocks.
    prompt = [*SYSTEM, *SYSTEM, *range(22)]
    s = shared(*[prompt] * 3)
    assert s.advance().batches == ((Chunk(0, 0, 64),),)
    assert s.advance().batches == ((Chunk(0, 64, 64),),)
    assert s.advance().batches == ((Chunk(0, 128, 22),),)
    assert s.advance().batches == (
        (Chunk(1, 144, 6), Chunk(2, 144, 6)),
        (Chunk(0, 150, 1),),
    )
    assert s.scheduler.cached == 144 + 3 * 6 + 1


def test_prompts_do_not_wait_where_a_pass_takes_longer_than_their_tokens() -> None:
    s = shared(*[[*range(20), key] for key in range(4)], chunk=128, breakeven_tokens=32)
    # 21 tokens each; a block of 16 is computed again twice, and a third time would be 48 > 32.
    assert keys(s.advance().batches[0]) == [0, 1, 2]
    assert Chunk(3, 16, 5) in [chunk for rows in s.advance().batches for chunk in rows]


def test_what_is_shared_takes_room_once() -> None:
    # A prompt of 66 tokens takes 66 for the first, and 2 for each of the others.
    s = shared([*SYSTEM, 0, 0], kv=200)
    advance_all(s, 3)
    s.add(*[[*SYSTEM, key, key] for key in range(1, 6)])
    s.advance()
    # 69 known + 5 * 2 + the lookahead of 16 for each that runs: 69 + 2 * 5 + 4 * 16 and less.
    assert s.scheduler.running == 6


def test_room_that_comes_with_the_prefix_is_given_to_those_who_wait() -> None:
    # Before anything is computed each takes 66 + 16: 66 + 82 fit 200 and 66 + 2 * 82 do not.
    s = shared(*[[*SYSTEM, key, key] for key in range(4)], kv=200)
    s.advance()
    assert s.scheduler.running == 2
    advance_all(s, 3)
    assert s.scheduler.running == 4


def test_the_preempted_leave_the_prefix_to_the_others() -> None:
    s = shared([*SYSTEM, 0], [*SYSTEM, 1], kv=100)
    s.advance()
    s.advance()
    while not (step := s.advance()).preempted:
        assert s.scheduler.cached <= 100
    assert step.preempted == (1,)
    assert s.pages.shared == 0
    assert s.scheduler.running == 1


def test_scopes_share_nothing() -> None:
    s = shared([*SYSTEM, 0])
    advance_all(s, 3)
    s.add([*SYSTEM, 1], scope=b"another")
    assert s.advance().batches[0][0].start == 0


def advance_all(s: Shared, steps: int) -> None:
    for _ in range(steps):
        s.advance()


# Any run


class SharingSimulation(Simulation):
    """A simulation whose prompts begin alike. It holds the contents of every page against them."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        shared = Shared(self.limits)
        self.tokens, self.pages, self.prefixes = shared.tokens, shared.pages, shared.prefixes
        self.scheduler = shared.scheduler
        self.contents: dict[int, int] = {}  # of each page: the digest of its token and those before
        self.scopes: dict[int, int] = {}
        self.adopted = 0

    def arrive(self) -> None:
        super().arrive()
        key = self.arrivals - 1
        count = self.known_tokens[key]
        common = self.chance.randint(0, count)
        family = self.chance.randrange(3)
        own = [self.chance.randrange(1000) for _ in range(count - common)]
        self.tokens[key] = [family + 3 * position for position in range(common)] + own
        self.scopes[key] = self.chance.randrange(2)
        self.prefixes.begin(key, bytes([self.scopes[key]]))

    def forget(self, key: int) -> None:
        super().forget(key)
        self.prefixes.end(key)
        del self.tokens[key]

    def check_room(self) -> None:
        reserved = sum(self.known_tokens[key] for key in self.scheduler.running_keys)
        assert reserved - self.pages.shared <= self.limits.kv_tokens

    def check(self, rows: tuple[Chunk, ...], seen: set[int]) -> None:
        for chunk in rows:
            skipped = chunk.start - self.cached[chunk.key]
            assert skipped >= 0
            self.adopted += skipped
            self.cached[chunk.key] = chunk.start
        super().check(rows, seen)

    def compute(self, chunk: Chunk) -> None:
        key, digest = chunk.key, self.scopes[chunk.key]
        pages = self.pages.take(key, chunk.end).tolist()
        for position, page in enumerate(pages):
            digest = hash((digest, self.tokens[key][position]))
            if position >= chunk.start:
                self.contents[page] = digest
            assert self.contents[page] == digest, "a page holds other tokens"
        self.prefixes.enter(chunk)
        super().compute(chunk)
        if self.known_tokens.get(key, 0) > len(self.tokens.get(key, ())):
            self.tokens[key].append(self.chance.randrange(4))


def test_with_prefixes_everyone_ends_the_pool_never_overflows_and_pages_hold_their_tokens() -> None:
    simulations = [SharingSimulation(seed) for seed in range(40)]
    for simulation in simulations:
        simulation.run(300)
        assert simulation.pages.free == simulation.limits.kv_tokens
        assert simulation.pages.shared == 0
    assert sum(simulation.preempted for simulation in simulations) > 50
    assert sum(simulation.adopted for simulation in simulations) > 100 * BLOCK_TOKENS


class Digests(SlotLayer):
    """A layer whose state is a digest of all tokens of its sequence."""

    pools = ()

    def __init__(self) -> None:
        self.states: dict[int, int] = {}

    def clear(self, slot: int) -> None:
        self.states.pop(slot, None)

    def copy(self, source: int, slot: int) -> None:
        self.states[slot] = self.states[source]


class StateSimulation(SharingSimulation):
    """The same for a model that keeps a state, which is held against its tokens, too."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        limits = self.limits = replace(
            self.limits,
            window=0,
            window_tokens=0,
            keeps_state=True,
            one_by_one=self.chance.random() < 0.3,
            shares_states=True,
        )
        self.slots, self.layer = StateSlots(limits.sequences), Digests()
        self.slots.layers.append(self.layer)
        self.pages = PagePool(limits.kv_tokens + PADDING_PAGES, limits.kv_tokens, limits.chunk)
        self.prefixes = PrefixCache(self.pages, self.tokens.__getitem__, self.slots)
        self.scheduler = Scheduler(limits, self.prefixes)

    def forget(self, key: int) -> None:
        super().forget(key)
        self.slots.release(key)

    def admitted(self) -> None:
        for key in self.known_tokens.keys() - self.scheduler.running_keys:
            self.slots.release(key)  # it may have been preempted
        super().admitted()

    def compute(self, chunk: Chunk) -> None:
        tokens, slot = self.tokens[chunk.key], self.slots.take(chunk.key)
        if chunk.start:
            assert self.layer.states[slot] == hash(tuple(tokens[: chunk.start]))
        self.slots.begin([chunk.key], continues=chunk.start > 0)
        self.layer.states[slot] = hash(tuple(tokens[: chunk.end]))
        super().compute(chunk)


def test_with_states_everyone_ends_and_goes_on_from_the_state_of_its_own_tokens() -> None:
    simulations = [StateSimulation(seed) for seed in range(16)]
    for simulation in simulations:
        simulation.run(300)
        assert simulation.slots.free == simulation.limits.sequences
        assert simulation.pages.free == simulation.limits.kv_tokens
    assert sum(simulation.preempted for simulation in simulations) > 20
    assert sum(simulation.adopted for simulation in simulations) > 150
