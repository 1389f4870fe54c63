"""Parse a handler's source, without executing it: its classes and the methods they override."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

BASE_METHODS = (
    "initialize",
    "preprocess",
    "inference",
    "postprocess",
    "handle",
    "explain_handle",
    "get_insights",
    "describe_handle",
)
"""The handler methods that TorchServe calls (``ts/torch_handler/base_handler.py``)."""

_MAX_BASES = 4
"""Base classes of a class in the report."""


@dataclass(frozen=True, slots=True)
class HandlerClass:
    """A class in the handler's source.

    Attributes:
        name: Its name.
        bases: The names of its base classes.
        methods: The members of `BASE_METHODS` that it defines, in source order.
    """

    name: str
    bases: tuple[str, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler, as far as its source shows it.

    Attributes:
        specification: The manifest's ``handler``: a file, ``module:function`` or a built-in one.
        file: The source's path in the archive; None if the archive does not hold it.
        fault: The reason why the source cannot be parsed; None if it can.
        classes: The classes that define methods which TorchServe calls.
        functions: The module's functions that TorchServe calls.
        trusts_remote_code: Whether the source contains ``trust_remote_code=True``.
        quantises: Whether it passes a ``quantization_config``.
        limits_total: Whether it passes ``max_new_tokens`` to ``generate`` as ``max_length``.
    """

    specification: str = ""
    file: str | None = None
    fault: str | None = None
    classes: tuple[HandlerClass, ...] = ()
    functions: tuple[str, ...] = ()
    trusts_remote_code: bool = False
    quantises: bool = False
    limits_total: bool = False


def parse_handler(
    content: bytes, specification: str, file: str, function: str = "handle"
) -> Handler:
    """Return a handler's classes, functions and arguments of interest.

    Args:
        content: The source.
        specification: The manifest's ``handler``.
        file: The source's path in the archive.
        function: The module's function that the manifest names.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(content)
        nodes = list(ast.walk(tree))
    except SyntaxError as error:
        place = f" 3, in line {error.lineno}" if error.lineno else ""
        return Handler(specification, file, fault=f"not Python{place}")
    except (ValueError, RecursionError, MemoryError):
        return Handler(specification, file, fault="not Python")
    arguments = [node for node in nodes if isinstance(node, ast.keyword)]
    return Handler(
        specification,
        file,
        classes=tuple(_classes(nodes)),
        functions=tuple(
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name in {"handle", function}
        ),
        trusts_remote_code=any(map(_trusts, arguments)),
        quantises=any(argument.arg == "quantization_config" for argument in arguments),
        limits_total=any(map(_limits_total, arguments)),
    )


def _classes(nodes: list[ast.AST]) -> Iterator[HandlerClass]:
    for node in nodes:
        if not isinstance(node, ast.ClassDef):
            continue
        methods = tuple(
            one.name
            for one in node.body
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name in BASE_METHODS
        )
        if methods:
            bases = tuple(_base_name(base) for base in node.bases[:_MAX_BASES])
            yield HandlerClass(node.name, bases, methods)


def _base_name(base: ast.expr) -> str:
    """Return the last part of a base class's name, or dots for any other expression."""
    if isinstance(base, ast.Attribute):
        return base.attr
    return base.id if isinstance(base, ast.Name) else "..."


def _trusts(argument: ast.keyword) -> bool:
    value = argument.value
    return argument.arg == "trust_remote_code" and getattr(value, "value", None) is True


def _limits_total(argument: ast.keyword) -> bool:
    """Return whether it is ``max_length=self.max_new_tokens``, as in TorchServe's examples."""
    value = argument.value
    return argument.arg == "max_length" and getattr(value, "attr", None) == "max_new_tokens"
