"""The standard health service, asked with its own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.protocol.stub import Served

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def health(served: Served) -> Iterator[Any]:
    with grpc.insecure_channel(served.grpc_address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def status(health: Any, service: str = "") -> int:
    answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
    return int(answer.status)


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "echo"])
def test_a_service_serves_while_its_model_is_ready(
    served: Served, health: Any, service: str
) -> None:
    assert status(health, service) == SERVING
    served.model.ready = False
    assert status(health, service) == NOT_SERVING


def test_a_service_that_nobody_knows_is_not_found(health: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        status(health, "no-such-service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_who_watches_hears_of_a_change(served: Served, health: Any) -> None:
    updates = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=30)
    assert next(updates).status == SERVING
    served.model.ready = False
    assert next(updates).status == NOT_SERVING
    updates.cancel()
