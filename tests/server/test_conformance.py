"""The Open Inference Protocol's own description, against the real server."""

from __future__ import annotations

from pathlib import Path

from tests.protocol.conformance import check_live_responses, require_spec, run_conformance
from tests.server.process import Served


def test_the_rest_surface_conforms(served: Served, tmp_path: Path, full_grid: bool) -> None:
    require_spec()
    run_conformance(served.url, served.name, tmp_path, examples=30 if full_grid else 10)
    check_live_responses(served.url, served.name)
