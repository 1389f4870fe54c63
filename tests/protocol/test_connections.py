"""Which connection is closed when there are too many."""

from __future__ import annotations

from predictor.protocol.http.connections import Connections


def closing(closed: list[str], name: str) -> object:
    return lambda: closed.append(name)


def opened(connections: Connections, closed: list[str], *names: str) -> None:
    for name in names:
        assert connections.add(name)
        connections.wait(name, lambda name=name: closed.append(name))  # type: ignore[misc]


def test_the_one_that_has_waited_longest_is_closed() -> None:
    connections, closed = Connections(3), list[str]()
    opened(connections, closed, "a", "b", "c")
    connections.wait("a", lambda: closed.append("a"))  # was answered, and waits again
    opened(connections, closed, "d", "e")
    assert closed == ["b", "c"]
    assert len(connections) == 3


def test_one_that_is_worked_for_is_not_closed() -> None:
    connections, closed = Connections(2), list[str]()
    opened(connections, closed, "a", "b")
    connections.work("a")
    opened(connections, closed, "c")
    assert closed == ["b"]


def test_if_all_are_worked_for_the_new_one_may_not_stay() -> None:
    connections, closed = Connections(1), list[str]()
    opened(connections, closed, "a")
    connections.work("a")
    assert not connections.add("b")
    connections.remove("b")
    connections.remove("a")
    opened(connections, closed, "c")
    assert closed == []


def test_one_that_was_closed_does_not_wait() -> None:
    connections = Connections(1)
    connections.add("a")
    connections.remove("a")
    connections.wait("a", lambda: None)
    assert connections.add("b")
    assert not connections.add("c")
