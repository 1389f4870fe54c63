from __future__ import annotations

from pathlib import Path

from tests.protocol.conformance import check_live_responses, require_spec, run_conformance
from tests.protocol.stub import Served


def test_schemathesis_finds_no_answer_that_the_protocol_does_not_allow(
    served: Served, tmp_path: Path, full_grid: bool
) -> None:
    require_spec()
    run_conformance(served.url, "echo", tmp_path, examples=100 if full_grid else 25)


def test_live_responses_follow_the_protocols_schemas_strictly(served: Served) -> None:
    require_spec()
    check_live_responses(served.url, "echo")
