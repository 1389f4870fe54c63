"""The outcome for one key of a TorchServe file: what a rule returns, and its row in the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from predictor.migration.display import format_value, one_line
from predictor.migration.torchserve_archive import TorchServeArchive

Outcome = Literal["taken over", "done otherwise", "no counterpart"]

_MAX_KEY = 64
"""Characters of a key in the report."""


@dataclass(frozen=True, slots=True)
class Row:
    """One key's row in the report.

    Attributes:
        file: The file that holds the key.
        key: The key, after its section's name and a dot.
        value: Its value as one short line.
        outcome: Whether the predictor does the same, does it differently or not at all.
        explanation: How it does so, or why it does not.
    """

    file: str
    key: str
    value: str
    outcome: Outcome
    explanation: str


@dataclass(frozen=True, slots=True)
class KeyMapping:
    """A rule's result for one key.

    Attributes:
        outcome: Whether the predictor does the same, does it differently or not at all.
        explanation: How it does so, or why it does not.
        settings: The settings that follow from the key, by name.
        generation: The keys of ``override_generation_config`` that follow from it.
    """

    outcome: Outcome
    explanation: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    def row(self, file: str, key: str, value: Any) -> Row:
        """Return the mapping as a row of the report."""
        return Row(
            file,
            one_line(key, _MAX_KEY),
            format_value(key, value),
            self.outcome,
            self.explanation,
        )


Rule = Callable[[Any, TorchServeArchive], KeyMapping]
"""Maps a key by its value and the settings of the whole archive."""


def kept(explanation: str, **settings: Any) -> KeyMapping:
    """Return a mapping to the same behaviour."""
    return KeyMapping("taken over", explanation, settings)


def changed(explanation: str, **settings: Any) -> KeyMapping:
    """Return a mapping to different behaviour for the same purpose."""
    return KeyMapping("done otherwise", explanation, settings)


def dropped(explanation: str) -> KeyMapping:
    """Return the mapping of a key that has no effect here."""
    return KeyMapping("no counterpart", explanation)


def always(mapping: KeyMapping) -> Rule:
    """Return a rule that maps every value alike."""
    return lambda *_: mapping


UNKNOWN = dropped("not a key that is known here")
