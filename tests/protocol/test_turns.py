"""A few requests begin in each iteration of the event loop, in the order in which they came."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from predictor.protocol.http.turns import Turns


def begun_in(iterations: int, requests: Callable[[Turns], list[Awaitable[None]]]) -> list[int]:
    """Return how many of the requests have begun after each iteration."""

    async def run() -> list[int]:
        tasks = [asyncio.ensure_future(each) for each in requests(Turns(at_once=2))]
        counts = []
        for _ in range(iterations):
            await asyncio.sleep(0)
            counts.append(sum(task.done() for task in tasks))
        for task in tasks:
            task.cancel()
        return counts

    return asyncio.run(run())


def test_a_few_requests_begin_at_once_and_all_others_after_them() -> None:
    counts = begun_in(8, lambda turns: [turns.take() for _ in range(6)])
    assert counts[0] == 2
    assert counts[-1] == 6
    assert max(after - before for before, after in itertools.pairwise(counts)) == 2


def test_requests_begin_in_the_order_in_which_they_came() -> None:
    async def run() -> list[int]:
        turns, order = Turns(at_once=1), []

        async def request(number: int) -> None:
            await turns.take()
            order.append(number)

        await asyncio.gather(*(request(number) for number in range(5)))
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_a_request_that_is_cancelled_takes_no_turn() -> None:
    async def run() -> None:
        turns = Turns(at_once=1)
        await turns.take()
        cancelled, other = (asyncio.ensure_future(turns.take()) for _ in range(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait_for(other, 10)

    asyncio.run(run())
