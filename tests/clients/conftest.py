"""The demo model's server, and the environment in which other people's clients are installed.

Their versions clash with those of the server, so they have an environment of their own, which
``make clients`` makes of `pins.txt`. Without it the tests are skipped, or fail where
``REQUIRE_CLIENTS=1`` promises it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import Served, serve
from tests.skips import skip_or_fail

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo-model"
PYTHON = Path(os.environ.get("CLIENTS_VENV", ROOT / ".venv-clients")) / "bin" / "python"
KEY = "sk-demo"

RunClient = Callable[..., subprocess.CompletedProcess[str]]
CallClient = Callable[[str], Any]


@pytest.fixture(scope="package")
def served() -> Iterator[Served]:
    """The demo model with an API key and with the routes of Text Generation Inference."""
    flags = ("--max_model_len=256", "--tgi_api", f"--api_key={KEY}")
    with serve(DEMO, *flags, name="demo") as server:
        yield server.await_ready()


@pytest.fixture(scope="package")
def run_client(tmp_path_factory: pytest.TempPathFactory) -> RunClient:
    """Runs Python with some arguments where the clients are."""
    if not PYTHON.exists():
        skip_or_fail(
            f"no clients are installed at {PYTHON}; make clients does it", "REQUIRE_CLIENTS"
        )
    more = {
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_KEY": KEY,
    }

    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PYTHON), *arguments],
            env={**os.environ, **more, **environ},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            cwd=ROOT,
        )

    return run


@pytest.fixture(scope="package")
def call_client(run_client: RunClient, served: Served) -> CallClient:
    """Runs one of the scripts against the server, and returns the JSON that it prints last."""

    def call(name: str) -> Any:
        script = Path(__file__).parent / "scripts" / f"{name}.py"
        done = run_client(str(script), served.url, KEY)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return call
