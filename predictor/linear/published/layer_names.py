"""Which layers a name in a config means, which each writer of configs decides in its own way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from itertools import accumulate

from predictor.errors import CheckpointError

Matcher = Callable[[str], bool]
"""Whether a layer, given by its name, is meant."""

_REGEX = "re:"


def every_layer(name: str) -> bool:  # noqa: ARG001 - one of the matchers
    """Match every layer."""
    return True


def as_transformers(patterns: Sequence[str], where: str) -> Matcher:
    """Return what matches as transformers' ``should_convert_module`` does.

    A pattern is the end of a name, or a regular expression of its first modules.

    Raises:
        CheckpointError: One is not a regular expression.
    """
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    starts = _alternatives([f"(?:{pattern}){boundary}" for pattern in patterns], where)
    ends = tuple(patterns)
    return lambda name: name.endswith(ends) or starts(name)


def as_compressed_tensors(patterns: Sequence[str], where: str) -> Matcher:
    """Return what matches names that are equal, or begin with what follows ``re:``.

    Raises:
        CheckpointError: One is not a regular expression.
    """
    names = frozenset(patterns)
    regexes = [name.removeprefix(_REGEX) for name in patterns if name.startswith(_REGEX)]
    begins = _any_of(regexes, where)
    return lambda name: name in names or begins(name)


def as_modelopt(patterns: Sequence[str], where: str) -> Matcher:
    """Return what matches names by wildcards, and all layers of modules whose name is a part.

    Raises:
        CheckpointError: One cannot be understood.
    """
    part = "|".join(map(re.escape, patterns))
    whole_modules = rf"(?:.*\.)?(?:{part})(?:\.|$)"
    return _alternatives([*map(translate, patterns), whole_modules] if patterns else [], where)


def as_parts(patterns: Sequence[str]) -> Matcher:
    """Return what matches names that a pattern is a part of, as AutoAWQ does."""
    return lambda name: any(pattern in name for pattern in patterns)


def in_modules(names: Iterable[str]) -> Matcher:
    """Return what matches layers with these names, and all layers of modules with these names."""
    modules = frozenset(names)
    return lambda name: any(
        prefix in modules for prefix in accumulate(name.split("."), "{}.{}".format)
    )


def begins_with(regex: str, where: str) -> Matcher:
    """Return what matches names that begin with a regular expression.

    Raises:
        CheckpointError: It is not one.
    """
    return _any_of([regex], where)


def is_regex(pattern: str) -> bool:
    """Return whether compressed-tensors takes a name for a regular expression."""
    return pattern.startswith(_REGEX)


def _alternatives(regexes: Sequence[str], where: str) -> Matcher:
    """Return what matches one of many expressions, as one expression, which is faster."""
    for regex in regexes:
        _compile(regex, where)
    whole = _compile("|".join(regexes), where)
    return lambda name: bool(regexes) and whole.match(name) is not None


def _any_of(regexes: Iterable[str], where: str) -> Matcher:
    compiled = [_compile(regex, where) for regex in regexes]
    return lambda name: any(regex.match(name) for regex in compiled)


def _compile(regex: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error:
        raise CheckpointError(f"{where}: {regex!r} is not a regular expression.") from None
