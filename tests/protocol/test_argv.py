"""kserve parses `sys.argv` when it is imported; a fresh process shows that it does not see ours."""

from __future__ import annotations

import subprocess
import sys


def test_importing_a_protocol_hides_flags_that_kserve_would_take_or_die_of() -> None:
    program = (
        "import sys, predictor.protocol.kserve.v1, kserve.model_server as server;"
        "print(sys.argv[1:], server.args.model_name)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "--max", "1", "--model", "mine"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.strip() == "['--max', '1', '--model', 'mine'] model", run.stderr
