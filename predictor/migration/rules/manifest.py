"""``MANIFEST.json``, and the source of the handler that it names."""

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
    changed,
    dropped,
    kept,
)
from predictor.migration.rules.handler import QUANTISED
from predictor.migration.rules.setup import is_accelerate_example
from predictor.migration.torchserve_archive import TorchServeArchive

_VERSION = re.compile(r"[^/\s]+")
_NOT_EXECUTED = dropped("the handler's code is not executed")
_MAX_VERSION = 64
"""Characters of a version."""


def _version(value: Any, source: TorchServeArchive) -> KeyMapping:
    if not isinstance(value, str) or not _VERSION.fullmatch(value) or len(value) > _MAX_VERSION:
        return changed("the version is 1: this is none that can stand in a URL")
    return kept("`model_version`", model_version=value)


def _handler(value: Any, source: TorchServeArchive) -> KeyMapping:
    if source.handler.file is None:
        return dropped("not in the archive: a built-in handler of TorchServe's, or lost")
    return dropped(f"{source.handler.file} is parsed for this report, never executed")


RULES: dict[str, Rule] = {
    "createdOn": always(dropped("only told here")),
    "archiverVersion": always(dropped("only told here")),
    "description": always(dropped("only told here")),
    "runtime": always(changed("Python, in the predictor's own process")),
    "version": always(dropped("only told here")),
}
"""The rules for keys of the manifest."""

MODEL: dict[str, Rule] = {
    "modelName": lambda value, source: kept("`model_name`", model_name=source.model_name),
    "modelVersion": _version,
    "handler": _handler,
    "requirementsFile": always(dropped("nothing is installed; the image has what serving needs")),
    "configFile": always(kept("read; see its rows")),
    "serializedFile": always(changed("weights are found by their usual names")),
    "modelFile": always(dropped("the architecture is transformers'; no code of an archive runs")),
    "extensions": always(dropped("only told here")),
    "envelope": always(changed("V1 and V2 are both served, each whole")),
    "description": always(dropped("only told here")),
    "version": always(dropped("only told here")),
}
"""The rules for keys of its object ``model``."""

_METHODS = {
    "initialize": changed("the weights go where the plan puts them"),
    "describe_handle": changed("V2's metadata describes the model"),
    "explain_handle": dropped("nothing is explained"),
    "get_insights": dropped("nothing is explained"),
}

_TEXT = {
    "preprocess": "the request's text goes to the model's own tokenizer",
    "inference": "the model's own generate loop; a request says how to sample",
    "postprocess": "the reply is text, in the form of the API that was asked",
    "handle": "one loop over the requests that run, a token at a time",
}


_WITHOUT_PROMPT = changed(
    "a reply is the new text alone; if the handler's began with the prompt, as those of pipelines "
    "and of decoded `generate()` do, a request says `return_full_text`"
)


def rows(source: TorchServeArchive, *, continues_prompts: bool = False) -> Iterator[Row]:
    """Yield the rows for the handler's source.

    Args:
        source: The archive's settings.
        continues_prompts: Whether the model may be one whose replies continue prompts.
    """
    handler = source.handler
    says_so = "return_full_text" in source.section("handler") or is_accelerate_example(source)
    if continues_prompts and not says_so:
        yield _WITHOUT_PROMPT.row(handler.file or "MANIFEST.json", "the reply", "")
    if handler.file is None:
        return
    if handler.fault is not None:
        fault = dropped(f"cannot be parsed: {handler.fault}; it is not executed anyway")
        yield fault.row(handler.file, "the source", "")
    for handler_class in handler.classes:
        yield from _class_rows(handler.file, handler_class, source)
    for name in handler.functions:
        yield _NOT_EXECUTED.row(handler.file, f"{name}()", "a function of the module")
    yield from _argument_rows(handler.file, handler)


def _class_rows(file: str, handler_class: HandlerClass, source: TorchServeArchive) -> Iterator[Row]:
    name, methods = handler_class.name, handler_class.methods
    overrides = dropped(f"overrides {', '.join(methods)}; its code is not executed")
    yield overrides.row(file, name, f"of {', '.join(handler_class.bases)}")
    for method in methods:
        yield _method(method, source).row(file, method, f"in {name}")


def _method(name: str, source: TorchServeArchive) -> KeyMapping:
    if name in _METHODS:
        return _METHODS[name]
    detail = (
        "; `torchserve_semantics` does as the Accelerate example did"
        if is_accelerate_example(source)
        else ""
    )
    return changed(f"{_TEXT[name]}{detail}")


def _argument_rows(file: str, handler: Handler) -> Iterator[Row]:
    if handler.trusts_remote_code:
        trust = dropped("say `--trust_remote_code` yourself if you trust the model's author")
        yield trust.row(file, "trust_remote_code", True)
    if handler.quantises:
        yield QUANTISED.row(file, "quantization_config", "")
