"""Starts with what the cache has: without the hub, with one that fails, and with an unsure cache.

The hub's library reads its variables when it is imported, so its constants are set here. One whole
start in a process of its own, with variables alone, is in `tests.server.test_hub`.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from predictor.checkpoint import hub as hub_module
from predictor.checkpoint.adapters import locate_adapter, read_adapter
from predictor.checkpoint.checkpoint import Checkpoint, fetch_weights, open_hub
from predictor.errors import CheckpointError, ConfigurationError, HubUnreachable
from predictor.tasks.loading import open_tokenizer
from tests.adapters import write_adapter
from tests.conftest import Checkpoints
from tests.hub import COMMIT, Hub, make_server

OTHER = "f" * 40
INFO, TREE, FILES = r"^/api/models/[^/]+/[^/]+(/revision/.*)?$", "/tree/", "/resolve/"
SILENCE = 0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the cache to an empty folder, and waits to a fraction of theirs."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_module, "_SECONDS_BEFORE_THE_CACHE", 0.5)
    monkeypatch.setattr(hub_module, "_SECONDS_FOR_SMALL_FILES", 0.5)
    monkeypatch.setattr(hub_module, "_SECONDS_TO_ANSWER", 1.0)
    return folder


@pytest.fixture
def hub(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on the loopback; its attributes may be changed while it runs."""
    server = make_server("127.0.0.1", 0, checkpoints("gpt2"), repository="me/model")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    use(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    handler: Any = server.RequestHandlerClass
    yield handler
    handler.fault = ("", 401)
    await_given_up()
    server.shutdown()
    server.server_close()
    thread.join()


def await_given_up() -> None:
    """Wait for calls that were left alone, which close the library's one client at each retry."""
    for thread in threading.enumerate():
        if thread.name == "hub":
            thread.join(60)


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def whole(revision: str | None = None) -> Checkpoint:
    """Return the checkpoint with its weights, and open all that a start opens of it."""
    checkpoint = fetch_weights(open_hub("me/model", revision))
    assert checkpoint.stored is not None
    open_tokenizer(checkpoint.path, trust_remote_code=False)
    return checkpoint


def refuse(_: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        use(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")


def go_offline(_: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def fail_with(pattern: str, status: int) -> Callable[[type[Hub], pytest.MonkeyPatch], None]:
    def fail(hub: type[Hub], _: pytest.MonkeyPatch) -> None:
        hub.fault = (pattern, status)

    return fail


OUTAGES = {
    "refused": refuse,
    "offline": go_offline,
    "silent": fail_with("", SILENCE),
    "503": fail_with("", 503),
    "429": fail_with("", 429),
}


@pytest.mark.parametrize("outage", OUTAGES)
@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_warm_cache_is_served_without_the_hub(
    hub: type[Hub],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    outage: str,
    revision: str | None,
) -> None:
    before = whole(revision)
    OUTAGES[outage](hub, monkeypatch)
    with caplog.at_level(logging.INFO, "predictor"):
        began = time.monotonic()
        after = whole(revision)
    assert after.revision == COMMIT
    assert after.stored == before.stored
    assert time.monotonic() - began < 15  # 0.5 s are waited for a hub that is silent
    (line,) = [record.getMessage() for record in caplog.records]
    assert "is served from the cache" in line
    assert COMMIT in line


def test_a_pinned_commit_that_is_complete_asks_the_hub_nothing(hub: type[Hub]) -> None:
    whole(COMMIT)
    hub.requested.clear()
    whole(COMMIT)
    assert hub.requested == []


def test_a_branch_asks_the_hub_once_and_fetches_nothing_again(hub: type[Hub]) -> None:
    whole()
    hub.requested.clear()
    whole()
    assert hub.requested == ["/api/models/me/model"]


def test_another_branch_than_the_cached_one_is_not_served_without_the_hub(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole("v1")
    refuse(hub, monkeypatch)
    with pytest.raises(HubUnreachable, match=r"\(revision v2\).* lacks me/model"):
        open_hub("me/model", "v2")


def snapshot(cache: Path, commit: str = COMMIT) -> Path:
    return cache / "models--me--model" / "snapshots" / commit


@pytest.mark.parametrize(
    ("glob", "sentence"),
    [
        ("model-00002*", r"lacks weights \(.* is incomplete: model-00002"),
        ("model*", r"lacks model\.safetensors\.index\.json"),
        ("tokenizer.json", r"lacks tokenizer\.json"),
        ("config.json", r"lacks config\.json"),
        ("*", r"lacks config\.json and \d more files"),
    ],
)
@pytest.mark.parametrize("revision", [None, COMMIT])
def test_an_incomplete_cache_says_what_is_missing(
    hub: type[Hub],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    glob: str,
    sentence: str,
    revision: str | None,
) -> None:
    whole(revision)
    for file in snapshot(cache).glob(glob):
        file.unlink()
    refuse(hub, monkeypatch)
    with pytest.raises(HubUnreachable, match=sentence) as raised:
        whole(revision)
    assert "--model_dir" in str(raised.value)
    assert "refused" in str(raised.value)


def test_a_cache_that_another_program_filled_is_served_without_the_hub(
    hub: type[Hub], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without the hub's list of files, as older libraries leave it."""
    from huggingface_hub import _tree_cache

    whole()
    (cache / "models--me--model" / "trees" / f"{COMMIT}.json").unlink()
    monkeypatch.setattr(_tree_cache, "_IN_MEMORY_TREE_CACHE", {})
    refuse(hub, monkeypatch)
    assert whole().revision == COMMIT
    next(snapshot(cache).glob("model-00002*")).unlink()
    with pytest.raises(HubUnreachable, match="lacks weights"):
        open_hub("me/model", None)


def test_what_the_cache_lacks_is_fetched_where_the_hub_answers(hub: type[Hub], cache: Path) -> None:
    whole(COMMIT)
    next(snapshot(cache).glob("model-00002*")).unlink()
    assert whole(COMMIT).stored is not None
    (snapshot(cache) / "tokenizer.json").unlink()
    assert whole(COMMIT).stored is not None


@pytest.mark.parametrize("fault", [(TREE, 503), (TREE, SILENCE), (FILES, 503), (FILES, SILENCE)])
def test_a_hub_that_fails_midway_in_a_new_commit_leaves_the_cached_one(
    hub: type[Hub], fault: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    whole()
    hub.commit, hub.fault = OTHER, fault
    assert whole().revision == COMMIT
    assert f"at commit {COMMIT}" in caplog.text
    hub.fault = None
    assert whole().revision == OTHER


def test_a_start_that_ended_amid_a_new_commit_leaves_the_cached_one(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole()
    hub.commit = OTHER
    assert open_hub("me/model", None).revision == OTHER  # and no weights
    refuse(hub, monkeypatch)
    assert whole().revision == COMMIT


def test_a_hub_that_denies_access_is_no_outage(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole()
    for status in (401, 403, 404):
        hub.fault = ("", status)
        with pytest.raises(CheckpointError, match="The hub"):
            open_hub("me/model", None)
    hub.fault, hub.repository = None, "me/other"
    with pytest.raises(CheckpointError, match="The hub has no me/model"):
        open_hub("me/model", None)
    hub.repository = None
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigurationError):
        open_hub("meta-llama/model", None)


@pytest.mark.parametrize(
    "error",
    [
        OSError("Consistency check failed: file should be of size 5 but has size 3"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        RuntimeError("Data processing error: CAS service error"),
    ],
)
def test_a_download_that_fails_is_an_outage(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(hub_module, "snapshot_download", fail)
        with pytest.raises(HubUnreachable, match=re.escape(str(error)[:20])):
            open_hub("me/model", None)
    whole()
    monkeypatch.setattr(hub_module, "snapshot_download", fail)
    assert open_hub("me/model", None).revision == COMMIT


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_cache_that_takes_no_files_is_no_outage(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hub_module, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=f"cannot be kept in .*{os.strerror(number)}"):
        open_hub("me/model", None)


def test_an_answer_of_something_else_is_an_outage(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captive portal answers 200 with a page, and a proxy closes the connection."""
    whole()
    monkeypatch.setattr(hub, "_listing", lambda *_: "<html>")
    assert whole().revision == COMMIT

    def hang_up(handler: Any) -> None:
        handler.close_connection = True

    monkeypatch.setattr(hub, "do_GET", hang_up)
    assert whole().revision == COMMIT


# --- adapters ---


@pytest.fixture
def published(hub: type[Hub], checkpoints: Checkpoints, tmp_path: Path) -> type[Hub]:
    """The hub, where the one repository is an adapter."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama"))
    hub.folder = write_adapter(tmp_path / "published", model, ("q_proj",), seed=0)
    hub.repository = "me/sql"
    return hub


@pytest.mark.parametrize("source", ["me/sql", "me/sql@v1", f"me/sql@{COMMIT}"])
def test_an_adapter_is_fetched_and_then_served_without_the_hub(
    published: type[Hub], source: str
) -> None:
    fetched = locate_adapter(source)
    assert read_adapter("sql", fetched).layers
    published.fault = ("", 503)
    assert locate_adapter(source) == fetched


def test_a_directory_goes_before_a_repository_of_the_same_name(
    published: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "me" / "sql").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate_adapter("me/sql") == Path("me/sql")
    assert locate_adapter("/me/sql") == Path("/me/sql")
    assert published.requested == []


def test_a_name_of_an_adapter_that_is_longer_than_any_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is no name of a model on the hub"):
        locate_adapter(f"me/{'n' * 5000}")


def test_a_new_commit_of_an_adapter_is_fetched_whatever_its_weights_take(
    published: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = locate_adapter("me/sql")
    published.commit = OTHER
    send = Hub._send

    def send_slowly(self: Hub, status: int, content: bytes, *others: Any) -> None:
        if "adapter_model" in self.path:
            time.sleep(0.6)  # more than the limit of small files
        send(self, status, content, *others)

    monkeypatch.setattr(published, "_send", send_slowly)
    after = locate_adapter("me/sql")
    assert after != before
    assert (after / "adapter_model.safetensors").is_file()


def test_a_repository_that_is_no_adapter_is_refused(published: type[Hub]) -> None:
    (published.folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"me/sql is no adapter: it lacks adapter_model"):
        locate_adapter("me/sql")
    with pytest.raises(CheckpointError, match="me/other"):
        locate_adapter("me/other")


def test_without_the_hub_and_a_copy_an_adapter_needs_a_directory(published: type[Hub]) -> None:
    published.fault = ("", 503)
    with pytest.raises(HubUnreachable, match=r"lacks me/sql; give a directory, or let"):
        locate_adapter("me/sql")
