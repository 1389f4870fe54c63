"""A handler's source is parsed without executing a line of it."""

from __future__ import annotations

import warnings

import pytest

from predictor.migration.handler import Handler, HandlerClass, parse_handler
from tests.migration.packing import HANDLER

FILE = "custom_handler.py"


def parsed(source: str | bytes, function: str = "handle") -> Handler:
    content = source.encode() if isinstance(source, str) else source
    return parse_handler(content, FILE, FILE, function)


def test_classes_and_the_methods_that_they_override_are_named() -> None:
    handler = parsed(HANDLER.format(mark="/nowhere/executed"))

    assert handler == Handler(
        FILE,
        FILE,
        classes=(
            HandlerClass(
                "Handler",
                ("BaseHandler", "ABC"),
                ("initialize", "preprocess", "inference", "postprocess"),
            ),
        ),
        trusts_remote_code=True,
    )


def test_a_base_of_a_module_has_its_last_name_and_an_expression_none() -> None:
    (handler_class,) = parsed(
        "class A(ts.torch_handler.BaseHandler, make('x')):\n  async def handle(self): ..."
    ).classes

    assert (handler_class.bases, handler_class.methods) == (("BaseHandler", "..."), ("handle",))


@pytest.mark.parametrize("function", ["handle", "serve"])
def test_functions_of_the_module_that_are_called_are_named(function: str) -> None:
    handler = parsed(f"def {function}(data, context): ...\ndef other(): ...", function)

    assert (handler.functions, handler.classes) == ((function,), ())


def test_a_class_that_overrides_nothing_is_not_named() -> None:
    assert parsed("class Config:\n  def get(self): ...").classes == ()


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("x = 1\nprint 'Python 2'", "not Python 3, in line 2"),
        ("def broken(:", "not Python 3, in line 1"),
        (b"x = '\xff'", "not Python 3, in line 1"),
        ("# coding: zlib\nx", "not Python"),
        ("x\0y", "not Python"),
        ("-" * 200_000 + "1", "not Python"),
        ("(" * 5000 + ")" * 5000, "not Python"),
    ],
)
def test_a_source_that_cannot_be_parsed_has_a_fault(source: str | bytes, fault: str) -> None:
    handler = parsed(source)

    assert handler.fault is not None
    assert handler.fault.startswith(fault)


def test_warnings_of_the_source_are_suppressed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parsed("x = '\\d' is 1").fault is None


@pytest.mark.parametrize(
    ("call", "trusts", "quantises", "limits"),
    [
        ("generate(ids, max_length=self.max_new_tokens)", False, False, True),
        ("generate(ids, max_new_tokens=self.max_new_tokens)", False, False, False),
        ("load('x', trust_remote_code=True)", True, False, False),
        ("load('x', trust_remote_code=False)", False, False, False),
        ("load('x', trust_remote_code=flag)", False, False, False),
        ("load('x', quantization_config=config)", False, True, False),
    ],
)
def test_arguments_that_matter_are_seen(
    call: str, trusts: bool, quantises: bool, limits: bool
) -> None:
    handler = parsed(f"self.model.{call}")

    assert (handler.trusts_remote_code, handler.quantises, handler.limits_total) == (
        trusts,
        quantises,
        limits,
    )
