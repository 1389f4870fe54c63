"""The scope of a request in the prefix cache: by the gateway's header, and only narrower."""

from __future__ import annotations

import pytest

from predictor.cache_scope import ONE_SCOPE, ScopeHeader, current_scope
from predictor.settings import read_settings

TENANT = ScopeHeader("X-Tenant")


def scope(*headers: tuple[str, str], salt: str = "", header: ScopeHeader = TENANT) -> bytes:
    with header.applied(headers):
        return current_scope(salt)


def test_without_a_header_all_requests_are_of_one_scope() -> None:
    assert scope(("x-tenant", "a"), header=ONE_SCOPE) == scope(header=ONE_SCOPE) == b""
    assert current_scope() == b""


def test_the_header_makes_the_scope_whatever_the_case_of_its_name() -> None:
    assert scope(("x-tenant", "a"), ("x-other", "1")) == scope(("X-TENANT", "a"))
    assert scope(("x-tenant", "a")) != scope(("x-tenant", "b"))


def test_a_request_without_the_header_is_of_a_scope_of_its_own() -> None:
    assert len({scope(), scope(), scope(("x-tenant", ""))}) == 3


@pytest.mark.parametrize(
    "headers",
    [
        [("x-tenant", "guess"), ("x-tenant", "a")],
        [("x-tenant", "a"), ("x-tenant", "guess")],
        [("x-tenant", "a"), ("x-tenant", "")],
        [("x-tenant", "a, a")],
    ],
)
def test_a_second_value_joins_no_other_scope(headers: list[tuple[str, str]]) -> None:
    assert scope(*headers) not in (scope(("x-tenant", "a")), scope(("x-tenant", "guess")))


def test_a_salt_makes_the_scope_narrower_and_never_another_callers() -> None:
    a, b = ("x-tenant", "a"), ("x-tenant", "b")
    scopes = {scope(a), scope(b), scope(a, salt="1"), scope(b, salt="1"), scope(a, salt="2")}
    assert len(scopes) == 5
    assert scope(a, salt="1") == scope(a, salt="1")
    assert scope(("x-tenant", "a1")) != scope(a, salt="1")
    assert scope(salt="1", header=ONE_SCOPE) not in (b"", scope(salt="2", header=ONE_SCOPE))
    assert scope(salt="\ud800")  # JSON may have half a character


def test_the_scope_ends_with_the_request() -> None:
    with TENANT.applied([("x-tenant", "a")]):
        pass
    assert current_scope() == b""


@pytest.mark.parametrize(
    ("flags", "header"),
    [
        ({}, None),
        ({"api_key": "k"}, "authorization"),
        ({"api_key_file": "/keys"}, "authorization"),
        ({"api_key": "k", "prefix_cache_salt_header": "x-tenant"}, "x-tenant"),
    ],
)
def test_without_a_header_each_api_key_is_a_scope(flags: dict[str, str], header: str) -> None:
    assert read_settings(flags, environ={}).scope_header() == header
