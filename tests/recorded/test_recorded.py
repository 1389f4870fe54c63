"""The server still gives the recorded answers, over every protocol."""

from __future__ import annotations

import json
from concurrent.futures import Future

import pytest

from tests.recorded.comparing import differences
from tests.recorded.forms import Request
from tests.recorded.recording import ANSWERS, begin
from tests.recorded.requests import REQUESTS
from tests.recorded.running import Answers

RECORDED: Answers = json.loads(ANSWERS.read_text())
SECONDS = 280


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest) -> dict[str, Future[Answers]]:
    """The future answers of the servers that the selected tests need, by server."""
    tests = [item for item in request.session.items if item.module is request.module]
    cases = [item.callspec.params["case"] for item in tests if hasattr(item, "callspec")]
    return begin({case.server for case in cases})


def test_each_request_has_one_recorded_answer() -> None:
    keys = [request.key for request in REQUESTS]
    assert len(set(keys)) == len(keys)
    assert set(keys) == set(RECORDED)


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.key)
def test_the_answer_is_the_recorded_one(case: Request, answers: dict[str, Future[Answers]]) -> None:
    answer = answers[case.server].result(SECONDS)[case.key]
    assert list(differences(RECORDED[case.key], answer)) == []
