"""What a handler's source shows without being executed: its classes, and what they override."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from predictor.migration.archive import Archive

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
"""What TorchServe calls of a handler (``ts/torch_handler/base_handler.py``)."""

_SHOWN_BASES = 4


@dataclass(frozen=True, slots=True)
class HandlerClass:
    """A class of the handler's file.

    Attributes:
        name: Its name.
        bases: What it is derived from, as written.
        methods: Those of `BASE_METHODS` that it defines, in the order of the source.
    """

    name: str
    bases: tuple[str, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Handler:
    """What a handler's source shows.

    Attributes:
        named: What the manifest names: a file, ``module:function`` or a built-in handler.
        file: The file in the archive; None where there is none.
        fault: Why it cannot be parsed; None where it can.
        classes: Its classes that define what TorchServe calls.
        functions: Those functions of the module that TorchServe calls.
        trusts_remote_code: Whether ``trust_remote_code=True`` is in it.
        quantises: Whether it gives a ``quantization_config``.
        limits_total: Whether it gives ``max_new_tokens`` to ``generate`` as ``max_length``.
    """

    named: str = ""
    file: str | None = None
    fault: str | None = None
    classes: tuple[HandlerClass, ...] = ()
    functions: tuple[str, ...] = ()
    trusts_remote_code: bool = False
    quantises: bool = False
    limits_total: bool = False


def read_handler(archive: Archive, named: str) -> Handler:
    """Returns what is known of the handler that a manifest names."""
    module, _, function = named.partition(":")
    file = module if module.endswith(".py") else f"{module}.py"
    if file not in archive.members:
        return Handler(named)
    return parse_handler(archive.read(file), named, file, function or "handle")


def parse_handler(content: bytes, named: str, file: str, function: str = "handle") -> Handler:
    """Returns what a handler's source shows.

    Args:
        content: The source.
        named: What the manifest names.
        file: The file in the archive.
        function: What the manifest names of the module.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(content)
        nodes = list(ast.walk(tree))
    except SyntaxError as error:
        where = f" 3, in line {error.lineno}" if error.lineno else ""
        return Handler(named, file, fault=f"not Python{where}")
    except (ValueError, RecursionError, MemoryError):
        return Handler(named, file, fault="not Python")
    arguments = [node for node in nodes if isinstance(node, ast.keyword)]
    return Handler(
        named,
        file,
        classes=tuple(_classes(nodes)),
        functions=tuple(
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name in {"handle", function}
        ),
        trusts_remote_code=any(map(_trusts, arguments)),
        quantises=any(one.arg == "quantization_config" for one in arguments),
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
            bases = tuple(_name(base) for base in node.bases[:_SHOWN_BASES])
            yield HandlerClass(node.name, bases, methods)


def _name(base: ast.expr) -> str:
    """The last part of a class's name; not what an expression may spell."""
    if isinstance(base, ast.Attribute):
        return base.attr
    return base.id if isinstance(base, ast.Name) else "..."


def _trusts(argument: ast.keyword) -> bool:
    value = argument.value
    return argument.arg == "trust_remote_code" and getattr(value, "value", None) is True


def _limits_total(argument: ast.keyword) -> bool:
    """Whether it is ``max_length=self.max_new_tokens``, as several of TorchServe's examples say."""
    value = argument.value
    return argument.arg == "max_length" and getattr(value, "attr", None) == "max_new_tokens"
