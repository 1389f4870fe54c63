"""What follows from the health of an engine: log lines, a metric, and the end of the process.

`predictor.heartbeat` decides what the health is. The caller polls this once a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from predictor.errors import EngineBroken
from predictor.heartbeat import Health, State

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Seconds between two polls. A poll takes microseconds."""

_CONFIRMATIONS = 10
"""Polls in a row that have to see a dead engine. After the whole process was suspended (a frozen
control group, a paused virtual machine), all work seems to have taken too long until it goes on."""


class Watchdog:
    """Follows the health of one engine."""

    def __init__(
        self,
        health: Callable[[], Health],
        *,
        show: Callable[[bool], None],
        on_dead: Callable[[EngineBroken], None],
    ) -> None:
        """Take the engine to be healthy.

        Args:
            health: Returns the engine's health.
            show: Called with whether the engine is stalled when that changes.
            on_dead: Called once with the reason, when the process has to end.
        """
        self._health, self._show, self._on_dead = health, show, on_dead
        self._state: State = "ok"
        self._dead_polls = 0

    def poll(self) -> None:
        """Look at the engine."""
        health = self._health()
        if (health.state == "ok") != (self._state == "ok"):
            self._report(health)
        self._state = health.state
        self._dead_polls = self._dead_polls + 1 if health.state == "dead" else 0
        if self._dead_polls == _CONFIRMATIONS:
            self._on_dead(
                EngineBroken(f"The engine hangs, so the process ends: {health.sentence}.")
            )

    def _report(self, health: Health) -> None:
        self._show(health.state != "ok")
        if health.state == "ok":
            logger.warning("The engine goes on, so the model is ready again")
        else:
            logger.error("The engine is stalled, so the model is not ready: %s", health.sentence)
