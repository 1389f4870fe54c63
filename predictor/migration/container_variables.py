"""The variables of a Kubernetes container, and references to them in its arguments.

The rule is Kubernetes' own (``third_party/forked/golang/expansion``): ``$(NAME)`` is the value of
the variable, ``$$`` is a dollar sign, and a name without a value stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


@dataclass(slots=True)
class ContainerVariables:
    """The variables of one container, and what is unknown of them.

    Attributes:
        values: Values by name. Those of Secrets are not in a manifest.
        unknown: Names that were referred to, and have no value.
    """

    values: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, variables: Any) -> ContainerVariables:
        """Return the variables of a container's ``env``; a value may refer to those before it."""
        made = cls()
        for name, value in _pairs(variables):
            made.values[name] = made.expand(value)
        return made

    def expand(self, text: str) -> str:
        """Return a text with values in place of references."""
        return _REFERENCE.sub(self._value, text)

    def _value(self, reference: re.Match[str]) -> str:
        name: str | None = reference[1]
        if name is None:
            return "$"
        if name not in self.values:
            self.unknown.add(name)
        return self.values.get(name, reference[0])


def _pairs(variables: Any) -> Iterator[tuple[str, str]]:
    for variable in variables if isinstance(variables, list) else []:
        if isinstance(variable, dict) and variable.get("value") is not None:
            yield str(variable.get("name")), str(variable["value"])
