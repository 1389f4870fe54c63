"""TLS of REST and gRPC over real sockets, with certificates that are renewed as Secrets are."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from kserve import InferenceGRPCClient
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from predictor.errors import ConfigurationError
from predictor.protocol.http.certificate import Certificate
from tests.certificates import self_signed
from tests.protocol.stub import Served, serve


class Secret:
    """A mounted Secret: links to files behind a link that each renewal swaps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._turn = 0
        self.renew()
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(Path("..data") / name)

    @property
    def files(self) -> tuple[Path, Path]:
        return self.folder / "tls.crt", self.folder / "tls.key"

    def renew(self) -> bytes:
        """Returns the chain that is in use from now on."""
        self._turn += 1
        target = self.folder / f"..turn{self._turn}"
        chain, _ = self_signed(target, f"turn-{self._turn}")
        old = self.folder / "..data"
        before = old.resolve() if old.exists() else None
        (self.folder / "..tmp").symlink_to(target.name)
        os.rename(self.folder / "..tmp", old)
        if before is not None:
            shutil.rmtree(before)
        return chain.read_bytes()


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Secret:
    return Secret(tmp_path_factory.mktemp("tls") / "mounted")


@pytest.fixture(scope="module")
def encrypted(secret: Secret) -> Iterator[Served]:
    with serve(certificate=Certificate(*secret.files)) as served:
        yield served


@pytest.fixture(scope="module")
def first_chain(encrypted: Served, secret: Secret) -> bytes:
    """The chain that gRPC has until the end."""
    assert encrypted.certificate is not None
    return encrypted.certificate.current().chain


def is_ready(served: Served, chain: bytes) -> bool:
    """Asks over a new connection that trusts `chain` alone."""
    credentials = grpc.ssl_channel_credentials(chain)
    with grpc.secure_channel(served.grpc_address, credentials) as channel:
        service = services.GRPCInferenceServiceStub(channel)
        return bool(service.ServerReady(pb.ServerReadyRequest(), timeout=30).ready)


def rest_chain(served: Served) -> bytes:
    return ssl.get_server_certificate(("127.0.0.1", served.http_port)).encode()


def test_both_protocols_serve_with_one_certificate(
    encrypted: Served, secret: Secret, first_chain: bytes
) -> None:
    chain = secret.files[0]
    assert is_ready(encrypted, first_chain)
    url = f"https://127.0.0.1:{encrypted.http_port}/v2/health/ready"
    trusted = ssl.create_default_context(cafile=chain)
    assert httpx.get(url, verify=trusted).status_code == 200


def test_kserves_client_is_answered(encrypted: Served, first_chain: bytes) -> None:
    async def ask() -> bool:
        client = InferenceGRPCClient(
            encrypted.grpc_address, use_ssl=True, creds=grpc.ssl_channel_credentials(first_chain)
        )
        return bool(await client.is_server_ready())

    assert asyncio.run(ask())


def test_a_client_without_tls_is_not_answered(encrypted: Served) -> None:
    with grpc.insecure_channel(encrypted.grpc_address) as channel:
        service = services.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            service.ServerReady(pb.ServerReadyRequest(), timeout=5)
    assert caught.value.code().name == "UNAVAILABLE"


def test_rest_serves_every_renewal_from_the_next_connection_on(
    encrypted: Served, secret: Secret
) -> None:
    for _ in range(3):  # the SDK's watcher misses all but the first
        chain = secret.renew()
        assert rest_chain(encrypted) == chain


def test_a_pair_that_does_not_fit_leaves_the_last_one_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chain, key = self_signed(tmp_path / "a")
    certificate = Certificate(chain, key)
    before = certificate.current()
    other, _ = self_signed(tmp_path / "b")
    shutil.copy(other, chain)
    assert certificate.current() is before
    assert certificate.current() is before
    assert caplog.text.count("stays in use") == 1
    shutil.copy(tmp_path / "b" / "tls.key", key)
    assert certificate.current().chain == other.read_bytes()
    key.unlink()
    assert certificate.current().chain == other.read_bytes()
    assert certificate.current().chain == other.read_bytes()
    assert caplog.text.count("stays in use") == 2  # any client may begin a handshake
    shutil.copy(tmp_path / "b" / "tls.key", key)
    assert certificate.current().chain == other.read_bytes()
    assert caplog.text.count("stays in use") == 2


def test_a_certificate_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path) -> None:
    chain, key = self_signed(tmp_path / "a")
    other, _ = self_signed(tmp_path / "b")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", key, "-out", locked],
        check=True,
        capture_output=True,
    )
    empty = tmp_path / "empty"
    empty.touch()
    for pair, reason in (
        ((chain, tmp_path / "none"), "No such file"),
        ((other, key), "KEY_VALUES_MISMATCH|values mismatch"),
        ((chain, locked), "passphrase"),
        ((empty, key), "PEM"),
        ((tmp_path, key), "directory|PEM"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            Certificate(*pair)


def test_handshakes_that_never_end_hold_nobody_up(encrypted: Served, first_chain: bytes) -> None:
    address = ("127.0.0.1", encrypted.grpc_port)
    silent = [socket.create_connection(address) for _ in range(20)]
    for connection in silent[:10]:
        connection.sendall(b"\x16\x03\x01\x00")
    try:
        assert is_ready(encrypted, first_chain)
        assert rest_chain(encrypted)
    finally:
        for connection in silent:
            connection.close()
