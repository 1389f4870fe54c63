"""What a handler's source shows, without a line of it executed."""

from __future__ import annotations

import warnings

import pytest

from predictor.migration.handler import Handler, HandlerClass, parse_handler
from tests.migration.packing import HANDLER

FILE = "custom_handler.py"


def parsed(source: str | bytes, function: str = "handle") -> Handler:
    content = source.encode() if isinstance(source, str) else source
    return parse_handler(content, FILE, FILE, function)


def test_classes_and_what_they_override_are_named() -> None:
    found = parsed(HANDLER.format(mark="/nowhere/executed"))

    assert found == Handler(
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
    (found,) = parsed(
        "class A(ts.torch_handler.BaseHandler, make('x')):\n  async def handle(self): ..."
    ).classes

    assert (found.bases, found.methods) == (("BaseHandler", "..."), ("handle",))


@pytest.mark.parametrize("function", ["handle", "serve"])
def test_functions_of_the_module_that_are_called_are_named(function: str) -> None:
    found = parsed(f"def {function}(data, context): ...\ndef other(): ...", function)

    assert (found.functions, found.classes) == ((function,), ())


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
def test_what_cannot_be_parsed_is_said(source: str | bytes, fault: str) -> None:
    found = parsed(source)

    assert found.fault is not None
    assert found.fault.startswith(fault)


def test_warnings_of_the_source_are_nobodys_business() -> None:
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
    found = parsed(f"self.model.{call}")

    assert (found.trusts_remote_code, found.quantises, found.limits_total) == (
        trusts,
        quantises,
        limits,
    )
