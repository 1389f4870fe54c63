"""Free pages: sequences get consecutive ones, and no page goes to two."""

from __future__ import annotations

import random

import torch

from predictor.engine.generation.free_pages import NO_PAGE, FreePages, runs_of


def pages(*runs: range) -> torch.Tensor:
    return torch.tensor([page for run in runs for page in run], dtype=torch.long)


def test_a_sequence_grows_in_place() -> None:
    free = FreePages(1, 100)
    taken = [free.take(10, NO_PAGE)]
    for _ in range(20):
        taken.append(free.take(1, int(taken[-1][-1])))
    assert runs_of(torch.cat(taken)) == [range(1, 31)]
    assert free.count == 70


def test_the_next_sequence_leaves_half_of_the_rest_to_the_one_before_it() -> None:
    free = FreePages(1, 100)
    assert free.take(20, NO_PAGE).tolist() == list(range(1, 21))
    assert runs_of(free.take(20, NO_PAGE)) == [range(61, 81)]  # 80 are left from page 21 on
    assert runs_of(free.take(40, 20)) == [range(21, 61)]
    assert runs_of(free.take(20, 60)) == [range(81, 101)]
    assert free.count == 0


def test_a_long_sequence_is_not_cut_to_leave_room_before_it() -> None:
    free = FreePages(1, 100)
    free.take(20, NO_PAGE)
    assert runs_of(free.take(70, NO_PAGE)) == [range(31, 101)]


def test_a_sequence_that_cannot_grow_continues_in_the_largest_runs() -> None:
    free = FreePages(1, 30)
    free.take(30, NO_PAGE)
    free.put_back(pages(range(3, 8), range(20, 28)))
    assert runs_of(free.take(12, 30)) == [range(20, 28), range(4, 8)]


def test_runs_that_touch_are_joined_whatever_the_order_in_which_they_come_back() -> None:
    free = FreePages(1, 30)
    free.take(30, NO_PAGE)
    for run in (range(11, 21), range(1, 11), range(21, 31)):
        free.put_back(pages(run).flip(0))
    assert runs_of(free.take(30, NO_PAGE)) == [range(1, 31)]


def test_no_page_is_given_to_two_and_none_is_lost() -> None:
    chance, free = random.Random(3), FreePages(1, 200)
    owned: dict[int, list[int]] = {}
    for key in range(600):
        if owned and chance.random() < 0.5:
            free.put_back(torch.tensor(owned.pop(chance.choice(list(owned)))))
        count = min(free.count, chance.randint(0, 30))
        after = chance.choice(list(owned.values()))[-1] if owned else NO_PAGE
        if count:
            owned[key] = free.take(count, after).tolist()
        everyone = [page for own in owned.values() for page in own]
        assert len(set(everyone)) == len(everyone) == 200 - free.count
        assert set(everyone) <= set(range(1, 201))


def test_no_pages_are_no_runs() -> None:
    assert runs_of(torch.empty(0, dtype=torch.long)) == []
    assert FreePages(1, 0).count == 0
    assert len(FreePages(1, 5).take(0, NO_PAGE)) == 0
