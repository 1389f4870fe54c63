"""A real server whose model is in the hub's cache, beside a hub that accepts and says nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from predictor.checkpoint.checkpoint import fetch_weights, open_hub
from tests.checkpoint.test_hub import use
from tests.conftest import Checkpoints
from tests.hub import COMMIT, Hub, make_server
from tests.server.process import serve


def test_a_warm_cache_is_served_beside_a_silent_hub(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the one question for the branch, nothing of the start asks it anything."""
    model = checkpoints("gpt2")
    with hub_of(model) as (endpoint, _), monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        use(patched, endpoint)
        fetch_weights(open_hub("me/model", None))
    with hub_of(model, fault=("", 0)) as (endpoint, silent):
        environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint}
        flags = ("--model_id=me/model", "--max_model_len=64")
        with serve(Path("/nowhere"), *flags, environ=environ) as served:
            served.await_ready()
            assert served.predict("ab", max_new_tokens=3).status_code == 200
            assert f"is served from the cache at commit {COMMIT}" in served.log
    # The second is the library's, for its user agent.
    assert set(silent.requested) <= {"/api/models/me/model", "/api/agent-harnesses"}


@contextlib.contextmanager
def hub_of(model: Path, **attributes: Any) -> Iterator[tuple[str, type[Hub]]]:
    """Yield the URL of a hub with one model, and its class."""
    server = make_server("127.0.0.1", 0, model, **attributes)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", server.RequestHandlerClass  # type: ignore[misc]
    server.shutdown()
    server.server_close()
    thread.join()
