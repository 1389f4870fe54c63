"""How a server of Text Generation Inference was started: arguments and variables.

They come from a command line, from a file of variables, or from a Kubernetes manifest whose
container has both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from predictor.compatibility.tgi_flags import TGI_FLAGS
from predictor.errors import ConfigurationError
from predictor.migration.container_variables import ContainerVariables

ARGUMENTS, ENVIRONMENT = "arguments", "environment"

_LAUNCHER = "text-generation-launcher"
_IMAGE = "text-generation-inference"
_GPU = "nvidia.com/gpu"
_MOST_BYTES = 1024**2
_SHORT = {short: name for name, flag in TGI_FLAGS.items() for short in flag.short}


@dataclass(frozen=True, slots=True)
class Option:
    """A flag or a variable.

    Attributes:
        source: `ARGUMENTS` or `ENVIRONMENT`.
        name: The flag's name, with underscores.
        value: Its value.
    """

    source: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server was started.

    Attributes:
        options: Its flags and variables. Of two with one name, a flag counts and not a variable.
        gpus: GPUs of its container; None if nothing states them.
        unknown: Variables that values refer to, and that have no value in the manifest.
    """

    options: tuple[Option, ...]
    gpus: int | None = None
    unknown: frozenset[str] = frozenset()

    def value(self, name: str) -> str | None:
        """Return the value of a flag, which wins, or of its variable."""
        values = {each.source: each.value for each in self.options if each.name == name}
        return values.get(ARGUMENTS, values.get(ENVIRONMENT))

    def unknown_in(self, value: str) -> str | None:
        """Return a variable that a value refers to and whose value is unknown, or None."""
        return next((name for name in sorted(self.unknown) if f"$({name})" in value), None)


def read_launch(
    arguments: Sequence[str], *, env_file: Path | None = None, manifest: Path | None = None
) -> Launch:
    """Return how a server was started.

    Args:
        arguments: The arguments of TGI's launcher.
        env_file: Variables, a line ``NAME=VALUE`` each, as Docker takes them.
        manifest: Kubernetes objects, one of which has a container of TGI.

    Raises:
        ConfigurationError: A file cannot be read, or there is nothing of TGI.
    """
    options = list(_flags(arguments))
    gpus = None
    variables = ContainerVariables()
    if env_file is not None:
        options += _variables(_lines(_text(env_file)))
    if manifest is not None:
        container = _container(manifest)
        variables = ContainerVariables.of(container.get("env"))
        options += _flags([variables.expand(word) for word in _words(container)])
        options += _variables(variables.values.items())
        gpus = _gpus(container)
    if not options:
        raise ConfigurationError(
            "There is nothing to import; give the arguments of text-generation-launcher after --, "
            "or --env_file or --manifest."
        )
    return Launch(tuple(options), gpus, frozenset(variables.unknown))


def _flags(words: Sequence[str]) -> Iterator[Option]:
    """Yield the flags of a command line; a word after one that takes no value is no value."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.rpartition("/")[2] == _LAUNCHER:
            continue
        given, equals, value = word.partition("=")
        name = _name(given)
        if name is None:
            raise ConfigurationError(f"{word!r} is no flag of {_LAUNCHER}.")
        if not equals:
            is_value = bool(rest) and not rest[0].startswith("-")
            value = rest.pop(0) if is_value else "true"
        yield Option(ARGUMENTS, name, value)


def _name(word: str) -> str | None:
    if word.startswith("--"):
        return word[2:].replace("-", "_")
    return _SHORT.get(word[1:]) if word.startswith("-") else None


def _variables(pairs: Iterable[tuple[str, str]]) -> Iterator[Option]:
    """Yield the variables that are flags; others are of other programs."""
    for name, value in pairs:
        if name.lower() in TGI_FLAGS and value:
            yield Option(ENVIRONMENT, name.lower(), value)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            yield name.removeprefix("export ").strip(), value.strip().strip("'\"")


def _words(container: Mapping[str, Any]) -> list[str]:
    parts = (container.get("command"), container.get("args"))
    return [str(word) for part in parts if isinstance(part, list) for word in part]


def _gpus(container: Mapping[str, Any]) -> int:
    resources = _object(container, "resources")
    amounts = {**_object(resources, "requests"), **_object(resources, "limits")}
    count = str(amounts.get(_GPU, ""))
    return int(count) if count.isdecimal() else 0


def _object(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = holder.get(key)
    return value if isinstance(value, dict) else {}


def _container(manifest: Path) -> Mapping[str, Any]:
    """Return the container of TGI, or the only one."""
    try:
        documents = list(yaml.safe_load_all(_text(manifest)))
    except (yaml.YAMLError, RecursionError):
        raise ConfigurationError(f"{manifest} is no valid YAML.") from None
    containers = list(_containers(documents))
    of_tgi = [each for each in containers if _IMAGE in str(each.get("image"))]
    if of_tgi or len(containers) == 1:
        return (of_tgi or containers)[0]
    raise ConfigurationError(f"{manifest} has no container whose image is {_IMAGE}.")


def _containers(documents: list[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the containers of Kubernetes objects, wherever their Pod's specification is.

    Each value is looked at once, even if aliases of YAML show it in many places.
    """
    waiting: list[Any] = [documents]
    visited: set[int] = set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, list | dict) or id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, list):
            waiting += value
            continue
        for key, inner in value.items():
            if key == "containers" and isinstance(inner, list):
                yield from (each for each in inner if isinstance(each, dict))
            else:
                waiting.append(inner)


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigurationError(f"{file} is larger than 1 MiB.")
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file} is not UTF-8.") from None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
