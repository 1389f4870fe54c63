"""The page's endpoints: who gets HTML, which headers it has, and what needs an API key."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from predictor.placement.plan import PlacementOptions
from predictor.placement.planner import plan
from predictor.protocol.http.authentication import ApiKeys
from predictor.protocol.ui.endpoints import accepts_html
from tests.placement.small import footprint, pod
from tests.protocol.stub import Served, serve

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
PLACEMENT = plan(footprint(), pod(57, memory=14), PlacementOptions())
FILES = ("ui/page.js", "ui/page.css", "ui/placement.css", "ui/icon.svg", "ui/playground.js")


@pytest.fixture(scope="module")
def with_page() -> Iterator[Served]:
    with serve(ui=True) as served:
        served.model.placement = PLACEMENT
        yield served


@pytest.fixture(scope="module")
def with_keys() -> Iterator[Served]:
    with serve(ui=True, keys=ApiKeys(["right"])) as served:
        served.model.placement = PLACEMENT
        yield served


def get(served: Served, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{served.url}/{path}", headers=headers, timeout=30)


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "TEXT/HTML;q=0.5", "*/*, text/html"])
def test_html_is_for_those_that_name_it(accept: str) -> None:
    assert accepts_html(accept)


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/*", "application/json", "text/html;q=0", "text/html; q=0.0, */*"]
)
def test_all_others_get_kserves_answer(accept: str) -> None:
    assert not accepts_html(accept)


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_the_root_stays_kserves_for_other_clients(with_page: Served, accept: str) -> None:
    answer = get(with_page, "", Accept=accept)

    assert answer.json() == {"status": "alive"}
    assert answer.headers["vary"] == "Accept"


def test_a_browser_gets_the_page_with_a_strict_policy(with_page: Served) -> None:
    answer = get(with_page, "", Accept=BROWSER)

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_inline_script_or_style_and_names_only_files_that_are_served(
    with_page: Served,
) -> None:
    page = get(with_page, "", Accept=BROWSER).text

    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)|https?:", page)
    for name in re.findall(r'(?:src|href)="(ui/[^"]+)"', page):
        assert get(with_page, name).status_code == 200


def test_every_file_that_a_script_imports_is_served_as_a_script(with_page: Served) -> None:
    waiting, names = ["page.js"], {"page.js"}
    while waiting:
        answer = get(with_page, f"ui/{waiting.pop()}")
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        imported = set(re.findall(r'from "\./([^"]+)"', answer.text)) - names
        waiting.extend(imported)
        names |= imported

    assert "snippets.js" in names


@pytest.mark.parametrize("name", ["page.html", "nothing.js", "..%2Fendpoints.py", "__init__.py"])
def test_nothing_else_is_served(with_page: Served, name: str) -> None:
    assert get(with_page, f"ui/{name}").status_code == 404


def test_without_the_setting_a_browser_gets_kserves_answer_too(served: Served) -> None:
    assert get(served, "", Accept=BROWSER).json() == {"status": "alive"}
    assert get(served, "ui/page.js").status_code == 404


def test_the_page_and_the_progress_need_no_key_and_the_rest_does(with_keys: Served) -> None:
    assert get(with_keys, "", Accept=BROWSER).status_code == 200
    for name in (*FILES, "ui/progress"):
        assert get(with_keys, name).status_code == 200, name
    for name in ("ui/state", "ui/placement.svg"):
        assert get(with_keys, name).status_code == 401, name
        assert get(with_keys, name, Authorization="Bearer right").status_code == 200, name


def test_the_progress_says_whether_a_key_is_needed_and_nothing_about_the_model(
    with_keys: Served, with_page: Served
) -> None:
    expected = {"ready": True, "progress": None, "needs_key": True}

    assert get(with_keys, "ui/progress").json() == expected
    assert get(with_page, "ui/progress").json() == expected | {"needs_key": False}


def test_while_it_loads_the_progress_is_an_answer_and_not_an_error(with_page: Served) -> None:
    with_page.model.ready, with_page.model.loading = False, {"phase": "loading", "bytes_done": 1}
    try:
        answer = get(with_page, "ui/progress")
    finally:
        with_page.model.ready = True

    assert answer.status_code == 200
    assert answer.json()["progress"] == {"phase": "loading", "bytes_done": 1}
    assert answer.json()["ready"] is False


def test_the_state_has_the_task_its_inputs_and_the_figures(with_page: Served) -> None:
    state = get(with_page, "ui/state").json()

    assert (state["model"], state["task"], state["is_placed"]) == ("echo", "text_generation", True)
    assert [field["name"] for field in state["fields"]] == ["text"]
    assert {"generated_tokens", "running", "waiting", "kv_used", "seconds"} <= set(state["figures"])


def test_the_placement_is_a_picture_without_a_style_that_the_policy_would_refuse(
    with_page: Served,
) -> None:
    answer = get(with_page, "ui/placement.svg")

    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.text.startswith("<svg")
    assert "<style" not in answer.text
    assert ".placement" in get(with_page, "ui/placement.css").text


def test_a_model_that_is_not_placed_yet_has_no_picture(with_page: Served) -> None:
    with_page.model.placement = None
    try:
        assert get(with_page, "ui/placement.svg").status_code == 503
    finally:
        with_page.model.placement = PLACEMENT


def test_the_routes_of_the_page_are_in_no_document(with_page: Served) -> None:
    paths = get(with_page, "openapi.json").json()["paths"]

    assert "/" in paths
    assert not [path for path in paths if path.startswith("/ui")]
