"""The channel between the two processes: real sockets, and what travels over them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from predictor import errors
from predictor.engine.process.channel import Channel
from predictor.errors import DoesNotFit, Overloaded, PredictorError, PromptTooLong

LARGE = b"x" * 2**22
"""More than the kernel buffers."""


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    first, second = (Channel(end) for end in socket.socketpair())
    yield first, second
    first.close()
    second.close()


def test_messages_arrive_in_order_and_large_ones_whole(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    messages = [1, LARGE, "two", {"three": [4]}, LARGE, None, ()]
    for message in messages[:5]:  # nobody reads yet: sending does not wait
        ours.send(message)
    assert [theirs.receive() for _ in range(5)] == messages[:5]


def test_messages_of_several_threads_are_not_mixed(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    senders = [
        threading.Thread(target=lambda n=n: [ours.send((n, LARGE[:50_000])) for _ in range(20)])
        for n in range(4)
    ]
    for sender in senders:
        sender.start()
    received = [theirs.receive() for _ in range(80)]
    for sender in senders:
        sender.join()
    assert sorted(number for number, _ in received) == sorted([*range(4)] * 20)
    assert all(data == LARGE[:50_000] for _, data in received)


def test_the_end_of_the_peer_is_received_as_none(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.send("last")
    theirs.close()
    assert ours.receive() == "last"
    assert ours.receive() is None
    ours.send("nobody hears this")  # and nothing is raised


def test_closing_ends_a_receive_in_another_thread(ends: tuple[Channel, Channel]) -> None:
    ours, _ = ends
    received: list[object] = []
    waiting = threading.Thread(target=lambda: received.append(ours.receive()))
    waiting.start()
    ours.close()
    waiting.join(20)
    assert received == [None]


@pytest.mark.parametrize(
    "error",
    [
        DoesNotFit("a", tier="cpu", needed=2, available=1, remedies=("b",)),
        PromptTooLong("a", tokens=2, limit=1),
        Overloaded("a", retry_after=3),
        *(
            kind("a")
            for kind in vars(errors).values()
            if isinstance(kind, type)
            and issubclass(kind, PredictorError)
            and kind not in (DoesNotFit, PromptTooLong, Overloaded)
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_arrive_with_their_class_and_data(
    ends: tuple[Channel, Channel], error: PredictorError
) -> None:
    ours, theirs = ends
    ours.send(error)
    received = theirs.receive()
    assert type(received) is type(error)
    assert str(received) == "a"
    assert vars(received) == vars(error)


def test_flushing_waits_until_everything_is_sent(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send(LARGE)
    received: list[object] = []
    reader = threading.Thread(target=lambda: received.append(theirs.receive()))
    ours.flush(0.01)  # gives up: nobody reads
    reader.start()
    ours.flush(20)
    ours.close()
    reader.join(20)
    assert received == [LARGE]
