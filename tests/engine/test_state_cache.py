"""Slots for states: their owners, and what a layer reads and writes in a forward pass."""

from __future__ import annotations

import pytest
import torch

from predictor.engine.generation.kv_cache import PagedKVCache
from predictor.engine.generation.layout import SequenceChunk
from predictor.private.cache_layers import CacheLayer

KERNEL, CHANNELS = 3, 2


def pool(slots: int = 4, layers: int = 2) -> PagedKVCache:
    return PagedKVCache([CacheLayer("linear_attention", 1)] * layers, 60, 20, slots=slots)


def row(key: int, start: int, count: int) -> SequenceChunk:
    return SequenceChunk(key, start, [7] * count)


def numbered(*values: float) -> torch.Tensor:
    """A recurrence's state of each row."""
    return torch.tensor(values)[:, None].expand(-1, CHANNELS).clone()


def recurrent(cache: PagedKVCache, layer: int = 0) -> list[float]:
    states = cache.get_recurrent_state(layer)
    assert states is not None
    return states[:, 0].tolist()


def run(cache: PagedKVCache, keys: list[int], start: int, *values: float) -> None:
    """Write states in both layers."""
    cache.lay_out([row(key, start, 1) for key in keys])
    for layer in range(2):
        cache.update_conv_state(torch.ones(len(keys), CHANNELS, 1), layer, conv_kernel_size=KERNEL)
        cache.update_recurrent_state(numbered(*values), layer)
    cache.states.finish()


def test_rows_that_begin_have_no_state() -> None:
    cache = pool()
    run(cache, [1, 2], 0, 10, 20)
    cache.lay_out([row(3, 0, 1)])
    assert not cache.has_previous_state(0)
    assert cache.get_recurrent_state(0) is None
    assert cache.get_conv_state(0) is None


@pytest.mark.parametrize("keys", [[1, 2], [2, 1], [1, 3], [3, 1]])
def test_rows_that_continue_have_their_own_in_any_order(keys: list[int]) -> None:
    cache = pool()
    run(cache, [1, 2, 3], 0, 10, 20, 30)
    cache.lay_out([row(key, 1, 1) for key in keys])
    assert cache.has_previous_state(0)
    assert recurrent(cache) == [10.0 * key for key in keys]


@pytest.mark.parametrize("keys", [[1, 2], [3, 1]])
def test_changes_in_place_are_kept(keys: list[int]) -> None:
    cache = pool()
    run(cache, [1, 2, 3], 0, 10, 20, 30)
    cache.lay_out([row(key, 1, 1) for key in keys])
    for layer in range(2):
        states = cache.get_recurrent_state(layer)
        assert states is not None
        states += 1 + layer
    cache.states.finish()
    cache.lay_out([row(key, 2, 1) for key in keys])
    assert recurrent(cache, 0) == [10.0 * key + 1 for key in keys]
    assert recurrent(cache, 1) == [10.0 * key + 2 for key in keys]


def test_a_convolution_sees_what_came_before_and_keeps_the_last_columns() -> None:
    cache = pool()
    cache.lay_out([row(1, 0, 1)])
    first = cache.update_conv_state(torch.full((1, CHANNELS, 1), 5.0), 0, conv_kernel_size=KERNEL)
    assert first[0, 0].tolist() == [0, 0, 5]
    cache.states.finish()
    cache.lay_out([row(1, 1, 2)])
    new = torch.tensor([6.0, 7.0]).expand(1, CHANNELS, 2)
    assert cache.update_conv_state(new, 0)[0, 0].tolist() == [0, 0, 5, 6, 7]
    cache.states.finish()
    cache.lay_out([row(1, 3, 1)])
    states = cache.get_conv_state(0)
    assert states is not None
    assert states[0, 0].tolist() == [5, 6, 7]


def test_a_slot_is_used_again_and_is_empty_then() -> None:
    cache = pool(slots=2)
    run(cache, [1, 2], 0, 10, 20)
    cache.release(1)
    assert cache.states.free == 1
    cache.lay_out([row(3, 0, 1)])
    cache.states.finish()
    cache.lay_out([row(3, 1, 1), row(2, 1, 1)])
    assert recurrent(cache) == [0, 20]


def test_more_sequences_than_slots_are_an_error() -> None:
    cache = pool(slots=1)
    run(cache, [1], 0, 10)
    with pytest.raises(MemoryError, match="all 1 slots for states are in use"):
        cache.lay_out([row(2, 0, 1)])


def test_no_padding_comes_between_a_state_and_new_tokens() -> None:
    cache = pool()
    run(cache, [1, 2], 0, 10, 20)
    assert cache.lay_out([row(1, 1, 3)], bucket_shapes=True).new == 3
    with pytest.raises(ValueError, match="unequal numbers of new tokens"):
        cache.lay_out([row(1, 1, 2), row(2, 1, 1)])
    with pytest.raises(ValueError, match="share no pass"):
        cache.lay_out([row(1, 1, 1), row(3, 0, 1)])


def test_without_keys_of_tokens_a_pass_is_as_wide_as_its_new_tokens() -> None:
    cache = pool(slots=2)
    run(cache, [1], 0, 10)
    for start in (1, 5000):
        layout = cache.lay_out([row(1, start, 3)], bucket_shapes=True)
        assert (layout.past, layout.new, layout.lengths.tolist()) == (0, 3, [start + 3])
    assert cache.free_pages == 59
    cache.release(1)
    assert cache.free_pages == 59


def test_the_states_of_a_pass_that_failed_are_lost() -> None:
    cache = pool()
    run(cache, [1, 2, 3], 0, 10, 20, 30)
    cache.lay_out([row(1, 1, 1), row(2, 1, 1)])
    cache.states.fail()
    assert [cache.states.owns(key) for key in (1, 2, 3)] == [False, False, True]


def test_layers_of_both_kinds_and_of_none() -> None:
    kinds = [("hybrid", 2), ("dummy", 0), ("conv", 1), ("full_attention", 0)]
    cache = PagedKVCache([CacheLayer(*kind) for kind in kinds], 20, 10, slots=2)
    assert cache.is_linear == [False, False, True, False]
    assert (cache.keeps_state, cache.keeps_tokens) == (True, True)
    cache.lay_out([row(1, 0, 2)])
    states = torch.zeros(1, 2, 2, 3)
    assert cache.update(states, states, 0)[0].shape == (1, 2, 2, 3)
    assert not PagedKVCache([CacheLayer("full_attention")], 20, 10).keeps_state
    assert not pool().keeps_tokens


def states_of(cache: PagedKVCache, key: int) -> list[float]:
    """The recurrences' states of a sequence in both layers."""
    cache.lay_out([row(key, 1, 1)])
    return [*recurrent(cache, 0), *recurrent(cache, 1)]


def test_a_kept_state_outlives_its_sequence_which_goes_on_meanwhile() -> None:
    cache = pool()
    run(cache, [1], 0, 10)
    cache.states.keep(1, b"a")
    run(cache, [1], 1, 11)
    cache.release(1)
    assert cache.states.free == 4
    assert cache.states.has(b"a")
    cache.states.adopt(2, b"a")
    assert states_of(cache, 2) == [10, 10]
    assert cache.states.has(b"a")  # for others


def test_sequences_have_slots_before_states_that_are_kept_and_the_oldest_goes_first() -> None:
    cache = pool(slots=4)
    for key, digest in ((1, b"a"), (2, b"b"), (3, b"c")):
        run(cache, [key], 0, 10 * key)
        cache.states.keep(key, digest)
        cache.release(key)
    cache.states.adopt(4, b"a")  # which is the youngest then
    run(cache, [5], 0, 50)
    assert [cache.states.has(digest) for digest in (b"a", b"b", b"c")] == [True, False, True]
    cache.states.adopt(6, b"a")
    assert [cache.states.has(digest) for digest in (b"a", b"c")] == [True, False]
    cache.states.adopt(7, b"a")  # its own slot is the last
    with pytest.raises(MemoryError):
        cache.states.take(8)
    assert [states_of(cache, key) for key in (4, 5, 6, 7)] == [[n, n] for n in (10, 50, 10, 10)]
    assert not cache.states.has(b"a")
    for key in (4, 5, 6, 7):
        cache.release(key)
    assert cache.states.free == 4


def test_without_a_free_slot_others_have_a_state_until_its_sequence_goes_on() -> None:
    cache = pool(slots=2)
    run(cache, [1, 2], 0, 10, 20)
    cache.states.keep(1, b"a")
    cache.states.adopt(2, b"a")
    run(cache, [1], 1, 11)
    assert cache.states.has(b"a")  # the second sequence has it
    run(cache, [2], 1, 22)
    assert not cache.states.has(b"a")


def test_a_state_that_may_be_spoilt_is_dropped() -> None:
    cache = pool()
    run(cache, [1], 0, 10)
    cache.states.keep(1, b"a")
    cache.states.drop(b"a")
    assert not cache.states.has(b"a")
    assert cache.states.free == 3
