"""The sources themselves: what they list, and how they fail."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from predictor.errors import CheckpointError, ConfigurationError, HubUnreachable, LoadFailed
from predictor.settings import read_settings
from predictor.weights.remote import ranges, web_reader
from predictor.weights.remote.hub_source import HubSource
from predictor.weights.remote.s3_source import S3Source
from predictor.weights.remote.source import Listing, RemoteFile, Source
from predictor.weights.remote.web_source import WebSource
from tests.server.test_hub import hub_of
from tests.weights.remote.s3 import endpoint, fill_bucket
from tests.weights.remote.web import web

__all__ = ["endpoint"]

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}',
    "model-1.safetensors": bytes(range(256)) * 40,
    "onnx/model.safetensors": b"another model",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def bucket(endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of the files in a bucket."""
    return fill_bucket(endpoint, folder, monkeypatch)


def read(source: Source, listing: Listing, name: str, begin: int, end: int) -> bytes:
    file = next(file for file in listing.files if file.name == name)
    return b"".join(source.read(file, begin, end))


def check(source: Source) -> Listing:
    """Check that a source lists and reads the files above."""
    listing = source.listing()
    sizes = {file.name: file.size for file in listing.files if "onnx" not in file.name}
    assert sizes == {name: len(data) for name, data in FILES.items() if "onnx" not in name}
    assert [file.name for file in listing.weights] == ["model-1.safetensors"]
    assert (
        read(source, listing, "model-1.safetensors", 1000, 5000)
        == (FILES["model-1.safetensors"][1000:5000])
    )
    assert listing.revision == source.listing().revision
    return listing


# Buckets


def test_a_bucket_lists_its_files_and_gives_ranges(bucket: str) -> None:
    check(S3Source(bucket))
    check(S3Source(f"{bucket}/"))


def test_an_object_that_was_replaced_is_an_error_and_another_revision(bucket: str) -> None:
    import boto3

    source = S3Source(bucket)
    listing = check(source)
    client = boto3.client("s3", endpoint_url=None, region_name="us-east-1")
    other = bytes(reversed(FILES["model-1.safetensors"]))
    client.put_object(Bucket="models", Key="team/tiny/model-1.safetensors", Body=other)

    with pytest.raises(LoadFailed, match=r"model-1.safetensors of s3://.* was changed"):
        read(source, listing, "model-1.safetensors", 0, 10)
    assert source.listing().revision != listing.revision


def test_objects_that_no_model_has_are_not_part_of_its_version(bucket: str) -> None:
    import boto3

    listing = check(S3Source(bucket))
    client = boto3.client("s3", endpoint_url=None, region_name="us-east-1")
    for name in ("README.md", "checkpoint-500/config.json", "a/b/config.json", "onnx/model.onnx"):
        client.put_object(Bucket="models", Key=f"team/tiny/{name}", Body=b"{}")

    assert S3Source(bucket).listing() == listing
    client.put_object(Bucket="models", Key="team/tiny/1_Pooling/config.json", Body=b"{}")
    assert S3Source(bucket).listing().revision != listing.revision


def test_small_files_are_those_of_the_model_itself() -> None:
    names = ("config.json", "1_Pooling/config.json", "checkpoint-500/config.json", "a/b/c.json")
    listing = Listing("a commit", tuple(RemoteFile(name, 2) for name in names))

    assert [file.name for file in listing.small(["*.json"])] == list(names[:2])


@pytest.mark.parametrize("uri", ["s3://models/none", "s3://nobucket/tiny"])
def test_a_bucket_without_the_files_is_refused(bucket: str, uri: str) -> None:
    with pytest.raises(CheckpointError, match=uri):
        S3Source(uri).listing()


def test_a_bucket_that_cannot_be_reached_is_an_outage_without_secrets(
    monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    monkeypatch.setattr("predictor.weights.remote.s3_source._SECONDS_TO_RETRY", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    with pytest.raises(HubUnreachable) as caught:
        S3Source(bucket).listing()

    assert "hidden-key" not in str(caught.value)


# Web servers


def test_each_file_of_a_web_server_is_looked_up_once(folder: Path) -> None:
    with web(folder) as (url, server):
        WebSource(url).listing()

    looked_up = [name for name, first, last in server.ranges if (first, last) == (0, 0)]
    assert sorted(looked_up) == sorted(name for name in FILES if "onnx" not in name)


def test_an_empty_file_on_a_web_server_is_a_file(folder: Path) -> None:
    (folder / "merges.txt").touch()
    with web(folder) as (url, _):
        listing = WebSource(url).listing()

    assert [file.size for file in listing.files if file.name == "merges.txt"] == [0]


@pytest.mark.parametrize("tail", ["", "/", "/model.safetensors.index.json"])
def test_a_web_server_gives_what_the_index_names(folder: Path, tail: str) -> None:
    with web(folder) as (url, _):
        check(WebSource(f"{url}{tail}"))


def test_a_single_file_needs_no_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    shutil.move(folder / "model-1.safetensors", folder / "model.safetensors")
    with web(folder) as (url, _):
        names = {file.name for file in WebSource(url).listing().files}

    assert names == {"config.json", "tokenizer.json", "model.safetensors"}


def test_a_web_server_without_ranges_is_refused(folder: Path) -> None:
    with (
        web(folder, has_ranges=False) as (url, _),
        pytest.raises(CheckpointError, match="must support ranges"),
    ):
        list(WebSource(url).read(RemoteFile("model-1.safetensors", 10240), 10, 20))


def test_an_index_that_points_outside_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}')
    with (
        web(folder) as (url, _),
        pytest.raises(CheckpointError, match="outside of its folder"),
    ):
        WebSource(url).listing()


@pytest.mark.parametrize("version", ["ETag", "Last-Modified"])
def test_a_file_that_changes_on_a_web_server_is_refused(folder: Path, version: str) -> None:
    with web(folder, version=version) as (url, _):
        source = WebSource(url)
        listing = check(source)
        (folder / "model-1.safetensors").write_bytes(b"x" * 10240)
        with pytest.raises(LoadFailed, match="was changed while it was fetched"):
            read(source, listing, "model-1.safetensors", 0, 10)


def test_a_file_whose_url_is_invalid_is_an_error_of_the_checkpoint(folder: Path) -> None:
    with web(folder) as (url, _):
        with pytest.raises(CheckpointError, match=r"no valid URL .*too long"):
            WebSource(f"{url}/{'a' * (2**16 - len(url) - 3)}").listing()
        index = {"weight_map": {"a": "model\n-1.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=r"no valid URL .*non-printable"):
            WebSource(url).listing()


def test_the_authorization_comes_from_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web(folder, authorization="Bearer hidden") as (url, _):
        with pytest.raises(CheckpointError, match="status 401"):
            WebSource(url).listing()
        monkeypatch.setenv("MODEL_URI_AUTHORIZATION", "Bearer hidden")
        check(WebSource(url))


def test_secrets_of_a_url_are_in_no_name_and_no_message(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "predictor")
    with web(folder) as (url, _):
        source = WebSource(f"{url.replace('://', '://user:hidden@')}?signature=hidden")
        check(source)
        (folder / "model-1.safetensors").unlink()
        with pytest.raises(CheckpointError) as caught:
            source.listing()

    assert source.name == f"{url}/"
    assert "hidden" not in f"{caught.value} {caplog.text} {source.name}"


def test_a_web_server_that_says_nothing_is_an_outage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_reader, "SECONDS_TO_READ", 0.3)
    with web(folder, broken=staticmethod(lambda name, first: 0)) as (url, _):
        source = WebSource(url)
        with pytest.raises(HubUnreachable):
            list(source.read(RemoteFile("config.json", 23), 0, 23))


@pytest.mark.parametrize("refusal", [429, 503])
def test_a_server_is_given_the_time_that_it_states(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(ranges, "sleep", waits.append)
    stated = [("Retry-After", "40"), ("RateLimit", '"resolvers";r=0;t=55')]
    limits = [*stated, ("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT"), ("Retry-After", "9999")]
    with web(folder, limits=limits, refusal=refusal) as (url, _):
        content = ranges.fetch_range(WebSource(url), RemoteFile("config.json", 23), 0, 23)

    assert content == FILES["config.json"]
    assert waits == [40, 55, 4, 300]


# The hub


def test_the_hub_lists_sizes_and_digests_and_gives_ranges(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of(folder) as (endpoint, _):
        use_hub(monkeypatch, endpoint)
        listing = check(HubSource("me/model", None))

    assert listing.weights[0].sha256 is not None


def test_the_hub_says_once_where_a_file_is_stored_and_again_when_that_is_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a token of ours")
    with hub_of(folder) as (endpoint, hub):
        use_hub(monkeypatch, endpoint)
        source = HubSource("me/model", None)
        (file,) = [file for file in source.listing().files if file.name == "config.json"]
        hub.storage = (endpoint.replace("127.0.0.1", "localhost"), "first")
        hub.requested.clear()
        contents = [b"".join(source.read(file, *place)) for place in ((0, 5), (5, 9))]
        hub.storage = (hub.storage[0], "second")
        contents.append(b"".join(source.read(file, 9, 23)))

    assert b"".join(contents) == FILES["config.json"]
    kinds = ["stored" if path.startswith("/stored/") else "hub" for path in hub.requested]
    assert kinds == ["hub", "stored", "stored", "stored", "hub", "stored"]


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    from tests.checkpoint.test_hub import use

    use(monkeypatch, endpoint)


# The setting


@pytest.mark.parametrize(
    "uri",
    [
        *("hf://org/name", "/mnt/models", "s3://", "gs://bucket/model", "https:///folder"),
        *("https://host:port/folder", "https://host:99999/folder", "https://[::1/folder"),
        *("https://..host/folder", "https://host/a\x00b", "https://1.2.3.999/x", "https://ⅷ.com/"),
        *("https://xn--zz--x/folder", "https://[v1.a]/folder", f"https://host/{'a' * 70_000}"),
    ],
    ids=lambda uri: uri[:40],
)
def test_a_model_uri_is_a_bucket_or_a_web_server(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="model_uri: "):
        read_settings({"model_uri": uri}, environ={})


def test_a_wrong_model_uri_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings({"model_uri": "ftp://user:hidden@host/model"}, environ={})

    assert "hidden" not in str(caught.value)
