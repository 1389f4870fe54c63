"""Turns the flags and variables of other servers into settings, with a line for each in the log."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from predictor.compatibility.flag import Flag
from predictor.compatibility.kserve_flags import KSERVE_FLAGS, KSERVE_VARIABLES
from predictor.compatibility.vllm_flags import VERSIONS, VLLM_FLAGS
from predictor.settings import names

logger = logging.getLogger(__name__)

FLAGS: Mapping[str, Flag] = {
    name: flag for name, flag in {**VLLM_FLAGS, **KSERVE_FLAGS}.items() if name not in names()
}
"""All flags of other servers that are not ours; KServe's win."""


def _options(name: str, flag: Flag) -> list[str]:
    """Return all names of a flag, with their dashes, the long one first."""
    return [f"--{name}", *(f"-{short}" for short in flag.short)]


SWITCHES = {
    option for name, flag in FLAGS.items() if flag.is_switch for option in _options(name, flag)
}
"""Those that may stand without a value, with their dashes."""

OBJECTS = {
    option: f"--{name}"
    for name, flag in FLAGS.items()
    if flag.is_object
    for option in _options(name, flag)
}
"""The long names of those that take a JSON object, by all their names with dashes."""

SERVERS = (
    f"Besides the settings, the flags of KServe's servers and of vLLM's ({VERSIONS}) are "
    "understood."
)
"""Which servers' flags are in the tables."""


def add_flags(parser: argparse.ArgumentParser, words: Iterable[str]) -> None:
    """Add the flags that a command line has to a parser; its help does not show them.

    Args:
        parser: The parser.
        words: The command line, with underscores. To add all flags takes longer than to parse.
    """
    used = {word.partition("=")[0].lstrip("-").removeprefix("no_") for word in words}
    has_short = any(re.match("-[a-zA-Z]", word) for word in words)
    for name, flag in FLAGS.items():
        if name in used or (has_short and flag.short):
            _add(parser, name, flag)


def _add(parser: argparse.ArgumentParser, name: str, flag: Flag) -> None:
    count: dict[str, Any] = {} if flag.count is None else {"nargs": flag.count}
    if flag.is_switch or flag.count == "?":
        count = {"nargs": "?", "const": "true"}
    parser.add_argument(*_options(name, flag), dest=name, help=argparse.SUPPRESS, **count)
    if flag.is_switch:
        add_negation(parser, name)


def add_negation(parser: Any, name: str) -> None:
    """Add ``--no_NAME`` of a switch to a parser or a group; its help does not show it."""
    off: dict[str, Any] = {"action": "store_const", "const": "false"}
    parser.add_argument(f"--no_{name}", dest=name, help=argparse.SUPPRESS, **off)


def without_others(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags with those of other servers replaced by settings; our own flags win.

    Args:
        given: Flags by name, ours and others.

    Raises:
        ConfigurationError: A flag is refused.
    """
    settings: dict[str, Any] = {}
    for name, values in given.items():
        if name in FLAGS:
            flag = FLAGS[name]
            applied = flag.apply(name, _texts(values), given.get(flag.equal_to))
            settings |= applied
            _log(f"--{name}", applied, flag.reason)
    return settings | {name: value for name, value in given.items() if name not in FLAGS}


def log_variables(environ: Mapping[str, str]) -> None:
    """Log the variables of other servers that change nothing."""
    for name, variable in KSERVE_VARIABLES.items():
        if name in environ:
            _log(name, (), variable.reason)


def _texts(values: str | Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def _log(name: str, settings: Iterable[str], reason: str) -> None:
    """Log the settings that a flag sets with its value, or why it sets none."""
    if sets := " and ".join(f"--{setting}" for setting in settings):
        logger.info("%s sets %s", name, sets)
    else:
        logger.warning("%s changes nothing: %s", name, reason)
