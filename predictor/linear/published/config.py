"""A quantisation config whose values are read with their types, and refused in one sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from predictor.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Config:
    """A mapping of a config file.

    Attributes:
        values: The mapping. An entry that is null counts as one that is missing.
        where: The file, and the place in it, as users see it.
    """

    values: Mapping[str, Any]
    where: str

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """Return a whole number.

        Raises:
            CheckpointError: It is missing and has no default, not a whole number, or too small.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(key, f"is {value!r} instead of a whole number of {minimum} or more")
        return value

    def one_of(self, key: str, allowed: Collection[int], default: int | None = None) -> int:
        """Return one of the allowed numbers.

        Raises:
            CheckpointError: It is missing and has no default, or another one.
        """
        value = self.integer(key, default, minimum=0)
        if value not in allowed:
            expected = " or ".join(str(number) for number in allowed)
            raise self.error(key, f"is {value}, and only {expected} can be served")
        return value

    def group_size(self, key: str = "group_size", default: int | None = None) -> int:
        """Return how many inputs share a scale; 0 for all, which configs write as -1.

        Raises:
            CheckpointError: It is missing and has no default, or not such a number.
        """
        if self.values.get(key) == -1:
            return 0
        return self.integer(key, default)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false.

        Raises:
            CheckpointError: It is missing and has no default, or neither.
        """
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"is {value!r} instead of true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text in lower case.

        Raises:
            CheckpointError: It is missing and has no default, or not a text.
        """
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"is {value!r} instead of a text")
        return value.lower()

    def names(self, *keys: str) -> tuple[str, ...]:
        """Return the texts of all lists that are there under some keys.

        Raises:
            CheckpointError: One is not a list of texts.
        """
        names: list[str] = []
        for key in keys:
            value = self._value(key, [])
            if not _is_list(value) or not all(isinstance(name, str) for name in value):
                raise self.error(key, "is not a list of names")
            names.extend(value)
        return tuple(names)

    def block(self, key: str, default: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return the outputs and inputs of a block.

        Raises:
            CheckpointError: It is missing and has no default, or not two sizes.
        """
        value = self._value(key, default)
        sizes = value if _is_list(value) else []
        if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
            raise self.error(key, f"is {value!r} instead of two sizes")
        return sizes[0], sizes[1]

    def mapping(self, key: str) -> Config:
        """Return a mapping inside of this one; an empty one if it is missing.

        Raises:
            CheckpointError: It is not a mapping.
        """
        value = self._value(key, {})
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise self.error(key, "is not a mapping")
        return Config(value, f"{self.where}, {key}")

    def error(self, key: str, sentence: str) -> CheckpointError:
        """Return the error that says what is wrong with a value."""
        return CheckpointError(f"{self.where}: {key} {sentence}.")

    def _value(self, key: str, default: object) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            raise self.error(key, "is missing")
        return default if value is None else value


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)
