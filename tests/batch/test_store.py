"""The directory of files and batches, with records that others damage and remove."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest

from predictor.batch.record_files import NotStored
from predictor.batch.store import BatchStore, StoreLimits
from predictor.errors import RequestError

DAMAGED = [b"", b"\0" * 300, b"[]", b"{", b'{"id": "x"}', b"null"]


@pytest.fixture
def store(tmp_path):
    return BatchStore(tmp_path, StoreLimits(10**6, 30))


@pytest.fixture
def owned(store):
    return store.of("Bearer one")


def add_file(owned, content=b"{}\n"):
    return owned.add_file(io.BytesIO(content), "in.jsonl", "batch")


def add_batch(owned, content=b"{}\n"):
    return owned.add_batch("/v1/x", add_file(owned, content).id, b"")


def record_of(owned, record):
    return owned.data(record.id).with_suffix(".json")


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_hides_no_other(owned, content):
    batch, other = add_batch(owned), add_batch(owned)
    record_of(owned, batch).write_bytes(content)

    assert [each.id for each in owned.batches()] == [other.id]
    with pytest.raises(NotStored, match="There is no batch"):
        owned.batch(batch.id)
    file = owned.files()[0]
    record_of(owned, file).write_bytes(content)
    assert len(owned.files()) == 1


@pytest.mark.parametrize(
    "change",
    [{"more": 1}, {"created_at": "x"}, {"status": "new"}, {"id": ""}, {"scope": "ab"}],
)
def test_a_record_of_another_version_is_not_there(owned, change):
    path = record_of(owned, add_batch(owned))
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))

    assert owned.batches() == []


def test_a_batch_of_a_build_without_scopes_is_there_and_shares_no_prefixes(owned, caplog):
    batch, other = add_batch(owned), add_batch(owned)
    for record in (batch, other):
        path = record_of(owned, record)
        document = json.loads(path.read_bytes())
        del document["scope"]
        path.write_text(json.dumps(document))

    scopes = {each.scope for each in owned.batches()}
    assert [len(bytes.fromhex(scope)) for scope in scopes] == [32, 32]
    with pytest.raises(RequestError, match=f"the input of {batch.id}"):
        owned.delete_file(batch.input_file_id)
    assert not caplog.records


def test_a_file_that_another_replica_removes_meanwhile_is_not_counted(store, owned, monkeypatch):
    file = add_file(owned)
    used, glob = store.used(), Path.glob

    def with_removed(folder, pattern):
        return [*glob(folder, pattern), folder / "0" / "removed", owned.data(file.id[:-1])]

    monkeypatch.setattr(Path, "glob", with_removed)
    assert store.used() == used > 0
    store.remove_old()


def test_a_record_that_another_replica_removes_meanwhile_is_not_listed(owned, monkeypatch):
    batch, glob = add_batch(owned), Path.glob

    def with_removed(folder, pattern):
        return [*glob(folder, pattern), folder / f"batch_{'0' * 24}.json"]

    monkeypatch.setattr(Path, "glob", with_removed)
    assert [each.id for each in owned.batches()] == [batch.id]


def test_a_record_is_on_the_volume_before_it_has_its_name(owned, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    batch = add_batch(owned)

    assert [name.endswith(".data") for name in synced] == [True, False, False]
    assert f".{batch.id}.json-" in synced[-1]


def test_the_input_of_a_batch_that_is_not_over_stays(owned):
    batch = add_batch(owned)

    with pytest.raises(RequestError, match=f"is the input of {batch.id}, which is validating"):
        owned.delete_file(batch.input_file_id)
    owned.enter(batch, "completed")
    owned.delete_file(batch.input_file_id)
    assert owned.files() == []


def test_what_is_old_is_removed_but_for_batches_that_are_not_over(store, owned, tmp_path):
    batch, over = add_batch(owned), add_batch(owned)
    owned.enter(over, "completed")
    for path in tmp_path.glob("*/*"):
        os.utime(path, (0, time.time() - 31 * 86400))
    store.remove_old()

    assert [each.id for each in owned.batches()] == [batch.id]
    assert [each.id for each in owned.files()] == [batch.input_file_id]
    assert owned.data(batch.input_file_id).exists()
    assert not owned.data(over.input_file_id).exists()


def test_a_file_without_content_is_not_there(owned):
    file = add_file(owned)
    owned.data(file.id).unlink()

    with pytest.raises(NotStored, match="no content"):
        owned.content(file.id)


def test_a_file_that_cannot_be_kept_whole_takes_no_space(owned, monkeypatch):
    def fails(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        add_file(owned)
    assert list(owned.data("x").parent.iterdir()) == []
