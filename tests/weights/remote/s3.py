"""A server of S3's API, and a bucket on it with the files of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

SECRET = "hidden-key"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The server's URL."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


def fill_bucket(
    endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "tiny"
) -> str:
    """Put the files of a folder into a bucket, set the variables for it, and return the URI.

    All servers in a process have the same buckets, so each test module has a name of its own.
    """
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": SECRET}
    others = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
    for variable, value in {**keys, **others}.items():
        monkeypatch.setenv(variable, value)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="models")
    for file in folder.rglob("*"):
        if file.is_file():
            key = f"team/{name}/{file.relative_to(folder)}"
            client.put_object(Bucket="models", Key=key, Body=file.read_bytes())
    return f"s3://models/team/{name}"
