"""A check that a library has the interfaces that are used of it; else one sentence says so.

Each module that uses private interfaces of a library declares them, and has them checked before it
imports them. A version in which everything is there serves, even if it is out of bounds. The
bounds are those of `pyproject.toml`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from dataclasses import dataclass
from typing import Any

from predictor.errors import ConfigurationError

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Library:
    """A library, and the versions whose private interfaces are known.

    Attributes:
        name: The name of its distribution.
        oldest: The version that the code was written for, which is the oldest that it takes.
        below: The first version that it does not take.
    """

    name: str
    oldest: str
    below: str

    @property
    def requirement(self) -> str:
        """Return the bounds as pip takes them."""
        return f"{self.name}>={self.oldest},<{self.below}"


@dataclass(frozen=True, slots=True)
class Interface:
    """A name of a library.

    Attributes:
        module: The full name of its module.
        name: Its name there: of a function, a class, a method, or an attribute of instances that
            the constructor sets.
        parameters: The parameters that a call here gives, in the library's order; None if it is
            not called. A call without one of the library's required parameters fails.
    """

    module: str
    name: str
    parameters: tuple[str, ...] | None = None


def uncalled(module: str, *names: str, of: str = "") -> tuple[Interface, ...]:
    """Return interfaces of one module that are not called, or are called without arguments.

    Args:
        module: The full name of the module.
        names: The names.
        of: The class whose attributes they are, if they are.
    """
    return tuple(Interface(module, f"{of}.{name}".removeprefix(".")) for name in names)


def check(library: Library, *interfaces: Interface) -> None:
    """Import the modules of some interfaces, and check that the library has them.

    Args:
        library: The library.
        interfaces: What is used of it.

    Raises:
        ConfigurationError: One is missing, or takes other parameters.
    """
    for interface in interfaces:
        fault = _fault(interface)
        if fault is not None:
            raise ConfigurationError(_sentence(library, interface, fault))


def lacking(error: ImportError) -> ConfigurationError:
    """Return the error for an import that failed of something that is not declared.

    Args:
        error: The error of the import.
    """
    name = (error.name or "").partition(".")[0]
    installed = f"; {_installed(name)}" if name else ""
    return ConfigurationError(
        f"An import failed ({error.msg}){installed}; install the versions that this predictor was "
        f"written for."
    )


def _fault(interface: Interface) -> str | None:
    """Return what is wrong with an interface, as the end of a clause about the library."""
    try:
        module = importlib.import_module(interface.module)
        return _fault_in(module, interface)
    except ModuleNotFoundError as error:
        is_own = f"{interface.module}.".startswith(f"{error.name}.")
        return "has none" if is_own else f"cannot be imported ({error})"
    except (ImportError, AttributeError) as error:  # the latter at a change of another library
        return f"cannot be imported ({error})"


def _fault_in(target: Any, interface: Interface) -> str | None:
    for name in interface.name.split("."):
        if not hasattr(target, name):
            return None if name in _set_by_constructor(target) else "has none"
        target = getattr(target, name)
    if interface.parameters is None or _takes(target, interface.parameters):
        return None
    return f"has one with other parameters, {_shown(target)}"


def _set_by_constructor(target: object) -> frozenset[str]:
    """Return the attributes that a class declares for its instances, or its constructor names."""
    bases = inspect.getmro(target) if inspect.isclass(target) else ()
    names: set[str] = set()
    for base in bases:
        names.update(inspect.get_annotations(base))
        if inspect.isfunction(constructor := vars(base).get("__init__")):
            names.update(constructor.__code__.co_names)
    return frozenset(names)


def _takes(target: Any, parameters: tuple[str, ...]) -> bool:
    named = [each for each in _own_parameters(target) if each.kind not in _VARIABLE]
    required = {each.name for each in named if each.default is each.empty}
    taken = tuple(each.name for each in named if each.name in parameters)
    return taken == parameters and required <= set(parameters)


def _shown(target: Any) -> str:
    return f"({', '.join(each.name for each in _own_parameters(target))})"


def _own_parameters(target: Any) -> list[inspect.Parameter]:
    parameters = inspect.signature(target).parameters.values()
    return [each for each in parameters if each.name != "self"]


def _sentence(library: Library, interface: Interface, fault: str) -> str:
    needs = f"{interface.module}.{interface.name}"
    if interface.parameters:
        needs += f"({', '.join(interface.parameters)})"
    return (
        f"This predictor was written for {library.name} {library.oldest} and needs {needs}; "
        f"{_installed(library.name, fault)}; install {library.requirement}."
    )


def _installed(name: str, fault: str = "") -> str:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return f"{name} {version} is installed{fault and f' and {fault}'}"
