"""One flag of another server: it works, changes nothing, or is refused.

Works: it sets settings of ours. Changes nothing: it is accepted with a line in the log that says
why. Refused: the sentence says what to do instead. A flag may be accepted with some values and
refused with others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from predictor.errors import ConfigurationError

Values = tuple[str, ...]
"""The values of a flag as they were given; one, unless the flag takes a list."""

Convert = Callable[[Values], Mapping[str, str]]
"""A function from the values of a flag to our settings by name."""

SWITCH_VALUES = {
    **dict.fromkeys(("true", "1", "yes", "on", "t", "y"), "true"),
    **dict.fromkeys(("false", "0", "no", "off", "f", "n"), "false"),
}
"""What a switch may have as its value, in small letters."""

ABSENT = ("", "None")
"""Values with which vLLM takes a flag for absent."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of another server.

    Attributes:
        settings: Names of the settings that it sets; none if it changes nothing.
        convert: Returns the settings.
        reason: Why it changes nothing, or the difference to the settings that it sets.
        accepted: The values that are accepted; None for any.
        instead: What to do instead of a value that is refused.
        equal_to: The flag whose value is accepted too; empty if there is none.
        is_switch: Whether it may stand without a value, and after ``--no-``.
        count: How many values it takes, as `argparse` has it: one, at most one, or several.
        is_secret: Whether its value is left out of messages.
        is_object: Whether it takes a JSON object, whose keys may be words of their own.
        short: Its names with one dash.
    """

    settings: tuple[str, ...] = ()
    convert: Convert | None = None
    reason: str = ""
    accepted: tuple[str, ...] | None = None
    instead: str = ""
    equal_to: str = ""
    is_switch: bool = False
    count: Literal["?", "+"] | None = None
    is_secret: bool = False
    is_object: bool = False
    short: tuple[str, ...] = ()

    def apply(self, name: str, values: Values, other: object = None) -> dict[str, str]:
        """Return the settings that the flag sets.

        Args:
            name: Its name.
            values: Its values, none of them absent.
            other: The value of the flag of the name `equal_to`; None if that is not given.

        Raises:
            ConfigurationError: It is refused with these values.
        """
        given = tuple(_switched(name, value) for value in values) if self.is_switch else values
        for value in given:
            is_accepted = self.accepted is None or value.lower() in self.accepted
            if not is_accepted and value != other:
                is_bare = self.is_secret or (self.is_switch and value == "true")
                shown = f"--{name}" if is_bare else f"--{name}={value}"
                raise ConfigurationError(f"{shown} is not supported: {self.instead}.")
        if self.convert is not None:
            return dict(self.convert(given))
        return dict.fromkeys(self.settings, given[-1])


def model_or_directory(values: Values) -> dict[str, str]:
    """Return the setting of a model that a flag names by a path or by a repository on the hub."""
    name = values[-1]
    is_path = name.startswith(("/", ".", "~")) or Path(name).exists()
    return {"model_dir" if is_path else "model_id": name}


def same(*settings: str, reason: str = "", is_switch: bool = False) -> Flag:
    """Return a flag that is another name of settings."""
    return Flag(settings, reason=reason, is_switch=is_switch)


def unneeded(reason: str, *, is_switch: bool = False, short: str = "") -> Flag:
    """Return a flag that changes nothing, whatever its value is."""
    return Flag(reason=reason, is_switch=is_switch, short=tuple(short.split()))


def all_unneeded(
    reason: str, names: str = "", *, switches: str = "", lists: str = ""
) -> dict[str, Flag]:
    """Return flags by name that change nothing for the same reason.

    Args:
        reason: The reason.
        names: Names of flags with one value, with spaces between them.
        switches: Those of switches.
        lists: Those of flags that take several values.
    """
    return {
        **dict.fromkeys(names.split(), Flag(reason=reason)),
        **dict.fromkeys(switches.split(), Flag(reason=reason, is_switch=True)),
        **dict.fromkeys(lists.split(), Flag(reason=reason, count="+")),
    }


def refused(
    instead: str,
    *,
    unless: tuple[str, ...] = (),
    reason: str = "it is what this server does anyway",
    equal_to: str = "",
    is_switch: bool = False,
    count: Literal["?", "+"] | None = None,
    is_secret: bool = False,
) -> Flag:
    """Return a flag that is refused, unless its value asks for nothing."""
    return Flag(
        accepted=("false", *unless) if is_switch else unless,
        instead=instead,
        reason=reason,
        equal_to=equal_to,
        is_switch=is_switch,
        count=count,
        is_secret=is_secret,
    )


def _switched(name: str, value: str) -> str:
    switched = SWITCH_VALUES.get(value.lower())
    if switched is None:
        raise ConfigurationError(f"--{name} is a switch, and has no value {value!r}.")
    return switched
