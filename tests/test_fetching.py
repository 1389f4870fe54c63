"""Whole starts with weights that the server itself fetches, in this process."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from predictor.errors import ConfigurationError, DoesNotFit, HubUnreachable, LoadFailed
from predictor.weights.remote import hub_source, ranges
from predictor.weights.remote.shard import Shard
from predictor.weights.remote.volume import volume_demand
from predictor.weights.store.packing import StoreWriter
from tests.checkpoint.test_hub import use
from tests.conftest import Checkpoints
from tests.server.test_hub import hub_of
from tests.serving import Up, blocks_on_disk, bring_up
from tests.weights.remote.web import Files, web

IDS = [72, 105, 33]


@pytest.fixture
def model(checkpoints: Checkpoints) -> Path:
    return checkpoints("llama")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ranges, "_WAITS", (0.0,))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))


Start = Callable[..., Up]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a model, after ending the one before it."""
    ups: list[Up] = []

    def begin(**flags: Any) -> Up:
        while ups:
            ups.pop().weights.release()
        ups.append(bring_up(Path("/nowhere"), **flags))
        return ups[-1]

    yield begin
    for up in ups:
        up.weights.release()


def local_tokens(model: Path, **flags: Any) -> list[int]:
    up = bring_up(model, **flags)
    tokens = up.tokens(IDS, max_new_tokens=6)
    up.weights.release()
    return tokens


def fetched(server: type[Files]) -> int:
    """Bytes of weights that were sent."""
    return sum(last - first + 1 for name, first, last in server.ranges if is_shard(name))


def is_shard(name: str) -> bool:
    return name.endswith(".safetensors")


def size_of(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def headers_of(model: Path) -> int:
    """Most bytes that are read for the headers: the first 64 KiB of each file, and a first byte."""
    return sum(min(2**16, file.stat().st_size) + 1 for file in model.glob("*.safetensors"))


def taken(*folders: Path) -> int:
    """Bytes that files take, holes excluded."""
    files = [str(file) for folder in folders for file in folder.rglob("*") if is_large(file)]
    return sum(Path(file).stat().st_blocks * 512 for file in files)


def is_large(file: Path) -> bool:
    return file.suffix in (".safetensors", ".store")


@pytest.mark.parametrize(
    ("flags", "source"),
    [
        pytest.param({}, "checkpoint", marks=pytest.mark.full_grid),
        pytest.param({"offload_store": "always"}, "store", marks=pytest.mark.full_grid),
        ({"dtype": "bfloat16"}, "store"),
        pytest.param({"weights_dtype": "int8"}, "store", marks=pytest.mark.full_grid),
    ],
    ids=["in place", "stored", "cast", "quantised"],
)
def test_a_claim_holds_one_copy_and_a_restart_fetches_nothing(
    model: Path, tmp_path: Path, start: Start, flags: dict[str, Any], source: str
) -> None:
    halves: dict[str, Any] = {"device_map": blocks_on_disk(model), **flags}
    expected = local_tokens(model, offload_folder=tmp_path / "local", **halves)
    folder = tmp_path / "offload"
    with web(model) as (url, server):
        up = start(model_uri=url, offload_folder=folder, **halves)
        assert up.tokens(IDS, max_new_tokens=6) == expected
        assert up.sources == {source}
        assert fetched(server) <= size_of(model) + headers_of(model)
        assert taken(folder) <= size_of(model) * 1.2  # whole pages of small tensors

        server.ranges.clear()
        again = start(model_uri=url, offload_folder=folder, **halves)
        assert again.tokens(IDS, max_new_tokens=6) == expected
        assert fetched(server) < 100  # the first byte of each file, for its size and ETag


def test_weights_that_stay_are_fetched_again_if_no_copy_is_kept(
    model: Path, tmp_path: Path, start: Start
) -> None:
    halves: dict[str, Any] = {"device_map": blocks_on_disk(model), "resident_copy": "never"}
    folder = tmp_path / "offload"
    with web(model) as (url, server):
        for _ in range(2):
            server.ranges.clear()
            up = start(model_uri=url, offload_folder=folder, offload_store="always", **halves)
            assert fetched(server) > size_of(model) / 4
            assert taken(folder) <= size_of(model) * 0.6
    assert up.tokens(IDS, max_new_tokens=6) == local_tokens(model)


def test_a_model_in_memory_leaves_nothing_on_disk_without_an_offload_folder(
    model: Path, tmp_path: Path, start: Start
) -> None:
    with web(model) as (url, server):
        up = start(model_uri=url)

        assert up.tokens(IDS, max_new_tokens=6) == local_tokens(model)
        assert fetched(server) <= size_of(model) + headers_of(model)
        assert taken(tmp_path / "home") < size_of(model) * 0.1


@pytest.mark.parametrize("store", ["auto", pytest.param("always", marks=pytest.mark.full_grid)])
def test_experts_that_are_read_one_by_one_are_fetched(
    checkpoints: Checkpoints, tmp_path: Path, start: Start, store: str
) -> None:
    model = checkpoints("mixtral")
    flags: dict[str, Any] = {"device_map": "disk", "offload_store": store}
    expected = local_tokens(model, offload_folder=tmp_path / "local", **flags)
    with web(model) as (url, server):
        up = start(model_uri=url, offload_folder=tmp_path / "offload", **flags)

        assert up.tokens(IDS, max_new_tokens=6) == expected
        assert fetched(server) <= size_of(model) + headers_of(model)
    assert taken(tmp_path / "offload") <= size_of(model) * 1.2


def test_a_model_that_does_not_fit_is_refused_by_the_headers_alone(
    model: Path, tmp_path: Path
) -> None:
    with web(model) as (url, server):
        with pytest.raises(DoesNotFit):
            bring_up(Path("/nowhere"), model_uri=url, memory=2**20, memory_reserve=0)

        assert fetched(server) <= headers_of(model)


def check_too_small(model: Path, volume: Path, **flags: Any) -> None:
    """Check that a volume is refused when no more than the headers are fetched."""
    with web(model) as (url, server):
        with pytest.raises(ConfigurationError, match=r"The offload volume has .* and needs"):
            bring_up(Path("/nowhere"), model_uri=url, offload_folder=volume / "offload", **flags)

        assert fetched(server) <= headers_of(model)


def test_a_volume_that_is_too_small_is_refused_before_the_download(
    model: Path, tmp_path: Path
) -> None:
    check_too_small(model, tmp_path, left=100_000, device_map=blocks_on_disk(model))


def test_a_model_that_is_converted_needs_room_for_all_its_forms(
    model: Path, tmp_path: Path
) -> None:
    flags = {"device_map": "disk", "weights_dtype": "int8"}
    check_too_small(model, tmp_path, left=size_of(model), **flags)


def test_a_claim_that_was_enough_once_is_enough_for_a_restart(
    model: Path, tmp_path: Path, start: Start
) -> None:
    folder = tmp_path / "offload"
    flags: dict[str, Any] = {"device_map": blocks_on_disk(model), "dtype": "bfloat16"}
    flags |= {"offload_folder": folder, "resident_copy": "never"}
    with web(model) as (url, _):
        up = start(model_uri=url, **flags)
        prepared = up.prepared
        remote = prepared.checkpoint.remote
        assert remote is not None
        demand = volume_demand(remote, prepared.footprint, prepared.placement, prepared.offload)
        again = start(model_uri=url, left=max(demand.least - taken(folder), 0), **flags)

    assert again.sources == {"store"}


def test_a_file_of_weights_that_the_index_does_not_name_is_not_fetched(
    model: Path, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", str(model), str(copy)], check=True)
    save_file({"embedding": torch.zeros(2**18)}, copy / "consolidated.safetensors")
    with hub_of(copy) as (endpoint, hub):
        use(monkeypatch, endpoint)
        up = start(model_id="me/model", offload_folder=tmp_path / "offload")
        sent = [size for name, *size in hub.ranges if name.endswith("consolidated.safetensors")]

    assert sum(last - first + 1 for first, last in sent) <= 2**16
    assert up.prepared.checkpoint.remote is not None
    assert up.prepared.checkpoint.remote.total_bytes == size_of(model)


def test_a_volume_that_is_full_when_space_is_released_is_a_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Shard) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Shard, "flush", full)
    with web(model) as (url, _), pytest.raises(ConfigurationError, match="is full while weights"):
        bring_up(Path("/nowhere"), model_uri=url, offload_folder=tmp_path / "offload")


def test_a_file_that_is_replaced_after_planning_ends_a_start_that_may_be_repeated(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", str(checkpoints("llama")), str(copy)], check=True)

    def edit(name: str, first: int) -> int | None:
        if first == 0 and is_shard(name):
            shards = sorted(copy.glob("*.safetensors"))
            if sum(each == shards[-1].name for each, _, last in server.ranges if last > 0) == 1:
                for shard in shards:
                    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
        return None

    with (
        web(copy, broken=staticmethod(edit)) as (url, server),
        pytest.raises(LoadFailed, match="was changed while it was fetched"),
    ):
        bring_up(Path("/nowhere"), model_uri=url, offload_folder=tmp_path / "offload")


def test_a_store_that_was_being_written_is_continued(
    model: Path, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {"device_map": "disk", "dtype": "bfloat16"}
    expected = local_tokens(model, offload_folder=tmp_path / "local", **flags)
    flags["offload_folder"] = tmp_path / "offload"
    written: list[str] = []
    write = StoreWriter.write

    def write_some(self: StoreWriter, name: str, tensors: Any) -> None:
        if len(written) == 2:
            raise HubUnreachable("the network is gone")
        written.append(name)
        write(self, name, tensors)

    with web(model) as (url, server):
        with monkeypatch.context() as patched:
            patched.setattr(StoreWriter, "write", write_some)
            with pytest.raises(HubUnreachable):
                start(model_uri=url, **flags)
        before, rest = len(written), list[str]()
        server.ranges.clear()

        def write_rest(self: StoreWriter, name: str, tensors: Any) -> None:
            rest.append(name)
            write(self, name, tensors)

        monkeypatch.setattr(StoreWriter, "write", write_rest)
        up = start(model_uri=url, **flags)

        assert up.tokens(IDS, max_new_tokens=6) == expected
    assert before == 2
    assert rest
    assert not set(rest) & set(written)
    assert not list((tmp_path / "offload").glob("*.partial*"))


def test_a_model_of_the_hub_comes_without_the_cache_and_without_the_hub_next_time(
    model: Path,
    tmp_path: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    flags: dict[str, Any] = {"model_id": "me/model", "offload_folder": tmp_path / "offload"}
    with hub_of(model) as (endpoint, hub):
        use(monkeypatch, endpoint)
        up = start(**flags)
        assert sum(last - first + 1 for name, first, last in hub.ranges if is_shard(name)) <= (
            size_of(model) + headers_of(model)
        )
    assert up.tokens(IDS, max_new_tokens=6) == local_tokens(model)
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    monkeypatch.setattr(hub_source, "_SECONDS_TO_ANSWER", 0.3)
    with hub_of(model, fault=("", 0)) as (endpoint, silent):
        use(monkeypatch, endpoint)
        again = start(**flags)
        silent.fault = ("", 503)

    assert again.tokens(IDS, max_new_tokens=6) == up.tokens(IDS, max_new_tokens=6)
    assert "me/model cannot be reached" in caplog.text


def test_a_complete_cache_is_served_and_nothing_is_fetched(
    model: Path, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {"model_id": "me/model", "offload_folder": tmp_path / "offload"}
    with hub_of(model) as (endpoint, hub):
        use(monkeypatch, endpoint)
        start(hub_cache="always", **flags)
        hub.requested.clear()
        up = start(**flags)

        assert not any("safetensors" in path for path in hub.requested)
    assert up.prepared.checkpoint.remote is None
    assert not (tmp_path / "offload/sources").exists()


def test_an_encoder_is_served_from_the_hub_by_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    from tests.checkpoints import byte_tokenizer

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    folder = tmp_path / "bert"
    BertForSequenceClassification(config).save_pretrained(folder, max_shard_size="30KB")
    byte_tokenizer().save_pretrained(folder)
    with hub_of(folder) as (endpoint, _):
        use(monkeypatch, endpoint)
        up = start(model_id="me/bert", offload_folder=tmp_path / "offload", max_model_len=64)

    assert up.prepared.checkpoint.task == "sequence_classification"
    assert up.prepared.checkpoint.remote is not None
