"""``MANIFEST.json``, and what the handler that it names shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from predictor.migration.handler import Handler, HandlerClass
from predictor.migration.mapping import (
    KeyMapping,
    Row,
    Rule,
    always,
    nothing,
    otherwise,
    taken,
)
from predictor.migration.rules.handler import QUANTISED
from predictor.migration.rules.setup import is_seeds
from predictor.migration.torchserve_archive import TorchServeArchive

_VERSION = re.compile(r"[^/\s]+")
_NOT_EXECUTED = nothing("the handler's code is not executed")
_SHOWN = 64


def _version(value: Any, legacy: TorchServeArchive) -> KeyMapping:
    if not isinstance(value, str) or not _VERSION.fullmatch(value) or len(value) > _SHOWN:
        return otherwise("the version is 1: this is none that can stand in a URL")
    return taken("`model_version`", model_version=value)


def _handler(value: Any, legacy: TorchServeArchive) -> KeyMapping:
    if legacy.handler.file is None:
        return nothing("not in the archive: a built-in handler of TorchServe's, or lost")
    return nothing(f"{legacy.handler.file} is parsed for this report, never executed")


RULES: dict[str, Rule] = {
    "createdOn": always(nothing("only told here")),
    "archiverVersion": always(nothing("only told here")),
    "description": always(nothing("only told here")),
    "runtime": always(otherwise("Python, in the predictor's own process")),
    "version": always(nothing("only told here")),
}
"""How a key of the manifest is judged."""

MODEL: dict[str, Rule] = {
    "modelName": lambda value, legacy: taken("`model_name`", model_name=legacy.model_name),
    "modelVersion": _version,
    "handler": _handler,
    "requirementsFile": always(nothing("nothing is installed; the image has what serving needs")),
    "configFile": always(taken("read; see its rows")),
    "serializedFile": always(otherwise("weights are found by their usual names")),
    "modelFile": always(nothing("the architecture is transformers'; no code of an archive runs")),
    "extensions": always(nothing("only told here")),
    "envelope": always(otherwise("V1 and V2 are both served, each whole")),
    "description": always(nothing("only told here")),
    "version": always(nothing("only told here")),
}
"""How a key of its object ``model`` is judged."""

_METHODS = {
    "initialize": otherwise("the weights go where the plan puts them"),
    "describe_handle": otherwise("V2's metadata describes the model"),
    "explain_handle": nothing("nothing is explained"),
    "get_insights": nothing("nothing is explained"),
}

_TEXT = {
    "preprocess": "the request's text goes to the model's own tokenizer",
    "inference": "the model's own generate loop; a request says how to sample",
    "postprocess": "the reply is text, in the form of the API that was asked",
    "handle": "one loop over the requests that run, a token at a time",
}


def rows(legacy: TorchServeArchive) -> Iterator[Row]:
    """Yields the rows of the handler's source."""
    handler = legacy.handler
    if handler.file is None:
        return
    if handler.fault is not None:
        said = nothing(f"cannot be parsed: {handler.fault}; it is not executed anyway")
        yield said.row(handler.file, "the source", "")
    for one in handler.classes:
        yield from _class_rows(handler.file, one, legacy)
    for name in handler.functions:
        yield _NOT_EXECUTED.row(handler.file, f"{name}()", "a function of the module")
    yield from _argument_rows(handler.file, handler)


def _class_rows(file: str, found: HandlerClass, legacy: TorchServeArchive) -> Iterator[Row]:
    said = nothing(f"overrides {', '.join(found.methods)}; its code is not executed")
    yield said.row(file, found.name, f"of {', '.join(found.bases)}")
    for method in found.methods:
        yield _method(method, legacy).row(file, method, f"in {found.name}")


def _method(name: str, legacy: TorchServeArchive) -> KeyMapping:
    if name in _METHODS:
        return _METHODS[name]
    like = "; `torchserve_semantics` does as the Accelerate example did" if is_seeds(legacy) else ""
    return otherwise(f"{_TEXT[name]}{like}")


def _argument_rows(file: str, handler: Handler) -> Iterator[Row]:
    if handler.trusts_remote_code:
        said = nothing("say `--trust_remote_code` yourself if you trust the model's author")
        yield said.row(file, "trust_remote_code", True)
    if handler.quantises:
        yield QUANTISED.row(file, "quantization_config", "")
