"""gRPC calls that are not admitted, not sent or no protobuf, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from predictor.admission import AdmissionLimits
from predictor.errors import RequestError
from predictor.protocol.kserve.grpc_calls import answering
from tests.protocol.stub import MAX_BODY_BYTES, Served, serve
from tests.protocol.test_grpc_server import asking

LIMITS = AdmissionLimits(requests=4, body_bytes=MAX_BODY_BYTES, sequences=8, tokens=1000)
INFER = "/inference.GRPCInferenceService/ModelInfer"
METHODS = [
    INFER,
    *(
        f"/inference.GRPCInferenceService/{name}"
        for name in ("ServerLive", "ModelReady", "ModelMetadata", "RepositoryModelLoad")
    ),
    "/grpc.health.v1.Health/Check",
]


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with serve(admission=LIMITS, grpc_timeout=0.5) as served:
        yield served


@pytest.fixture
def channel(served: Served) -> Iterator[Any]:
    with grpc.insecure_channel(served.grpc_address) as channel:
        yield channel


def raw(channel: Any, method: str) -> Any:
    """A method that takes and gives bytes."""
    return channel.unary_unary(method)


def await_requests(served: Served, count: int) -> None:
    deadline = time.monotonic() + 20
    while served.admission.requests != count:
        assert time.monotonic() < deadline, f"{served.admission.requests} are in flight"
        time.sleep(0.002)


def error(call: Any, *args: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, timeout=30)
    return caught.value


@pytest.mark.parametrize("method", METHODS)
def test_a_broken_protobuf_is_invalid_argument_and_nothing_is_logged(
    channel: Any, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    refused = error(raw(channel, method), b"\xff")
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not a valid protobuf of" in refused.details()
    assert not caplog.records


def test_a_call_without_a_message_is_refused(channel: Any) -> None:
    refused = error(channel.stream_unary(INFER), iter(()))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.details() == "The call has no message."


def test_a_message_that_does_not_come_is_not_awaited(served: Served, channel: Any) -> None:
    silence = threading.Event()

    def nothing() -> Iterator[bytes]:
        silence.wait(30)
        yield from ()

    refused = error(channel.stream_unary(INFER), nothing())
    silence.set()
    assert refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "did not arrive within 0.5" in refused.details()
    await_requests(served, 0)


@contextlib.contextmanager
def held(served: Served, channel: Any, calls: int, text: bytes = b"a") -> Iterator[None]:
    served.model.held = True
    infer = services.GRPCInferenceServiceStub(channel).ModelInfer
    running = [infer.future(asking(text), timeout=30) for _ in range(calls)]
    await_requests(served, calls)
    yield
    served.model.held = False
    for call in running:
        assert call.result().outputs
    await_requests(served, 0)


def test_one_call_too_many_is_refused_and_questions_of_health_are_answered(
    served: Served, channel: Any
) -> None:
    inference = services.GRPCInferenceServiceStub(channel)
    with held(served, channel, LIMITS.requests):
        refused = error(inference.ModelInfer, asking(b"a" * 200_000))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details() == "4 requests are running and waiting; try again later."
        assert int(dict(refused.trailing_metadata())["retry-after"]) >= 1
        assert inference.ServerLive(pb.ServerLiveRequest(), timeout=30).live
        assert inference.ServerReady(pb.ServerReadyRequest(), timeout=30).ready
        assert inference.ModelReady(pb.ModelReadyRequest(name="echo"), timeout=30).ready
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1


def test_the_id_of_a_call_goes_back_with_its_answer_and_with_its_error(
    served: Served, channel: Any
) -> None:
    infer = services.GRPCInferenceServiceStub(channel).ModelInfer
    given = [("x-request-id", "abc-1")]
    _, call = infer.with_call(asking(b"a"), metadata=given, timeout=30)
    assert dict(call.trailing_metadata())["x-request-id"] == "abc-1"
    _, call = infer.with_call(asking(b"a"), timeout=30)
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 32
    with held(served, channel, LIMITS.requests), pytest.raises(grpc.RpcError) as caught:
        infer(asking(b"a"), metadata=given, timeout=30)
    refused = dict(caught.value.trailing_metadata())
    assert (refused["x-request-id"], int(refused["retry-after"]) >= 1) == ("abc-1", True)


def test_bytes_in_flight_are_bounded(served: Served, channel: Any) -> None:
    infer = services.GRPCInferenceServiceStub(channel).ModelInfer
    with held(served, channel, 1, b"a" * (MAX_BODY_BYTES // 2)):
        refused = error(infer, asking(b"a" * (MAX_BODY_BYTES // 2)))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "bytes, and this one" in refused.details()
    assert served.admission.body_bytes == 0


def test_clients_that_hang_up_at_any_moment_leave_nothing(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(7)
    for round_ in range(30):
        served.model.held = round_ % 2 > 0
        with grpc.insecure_channel(
            served.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            infer = services.GRPCInferenceServiceStub(channel).ModelInfer
            calls = [infer.future(asking(b"a" * 50_000), timeout=30) for _ in range(8)]
            time.sleep(chance.random() / 100)
            for call in calls[::2]:
                call.cancel()
    served.model.held = False
    await_requests(served, 0)
    assert served.admission.body_bytes == 0
    # The library itself may log an answer to a client that has just hung up.
    ours = [record for record in caplog.records if record.name != "grpc._cython.cygrpc"]
    assert not [record for record in ours if record.levelno >= logging.WARNING]


def alone(address: str) -> Any:
    """A channel with a connection of its own."""
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def silent(stack: contextlib.ExitStack, address: str, method: str, calls: int) -> list[Any]:
    """Calls that have begun and send nothing, 32 on each connection."""
    silence = threading.Event()

    def nothing() -> Iterator[bytes]:
        silence.wait(60)
        yield from ()

    started = []
    for first in range(0, calls, 32):
        channel = stack.enter_context(alone(address))
        call = channel.stream_unary(method)
        started += [call.future(nothing()) for _ in range(min(32, calls - first))]
    stack.callback(silence.set)
    return started


@pytest.fixture(scope="module")
def patient() -> Iterator[str]:
    """A server that does not end a silent call soon."""
    with serve(admission=LIMITS, grpc_timeout=300.0) as served:
        yield served.grpc_address


@pytest.mark.parametrize("calls", [40, 160])
def test_health_is_answered_while_other_calls_are_silent(patient: str, calls: int) -> None:
    check = "/grpc.health.v1.Health/Check"
    with contextlib.ExitStack() as stack:
        started = silent(stack, patient, check, calls)
        channel = stack.enter_context(alone(patient))
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(20):
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=4).status == 1
        if calls > 128:
            codes = {started[0].code()}  # waits: of too many, the first is refused
            assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_silent_calls_take_no_permit_and_give_way(patient: str) -> None:
    with contextlib.ExitStack() as stack:
        started = silent(stack, patient, INFER, 24)
        channel = stack.enter_context(alone(patient))
        infer = services.GRPCInferenceServiceStub(channel).ModelInfer
        for _ in range(3):
            assert infer(asking(b"a"), timeout=60).outputs
        assert any(call.done() for call in started)


def test_a_large_message_of_a_small_method_is_refused(channel: Any) -> None:
    name = "a" * 100_000
    check = health_pb2_grpc.HealthStub(channel).Check
    refused = error(check, health_pb2.HealthCheckRequest(service=name))
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.details() == "The message is larger than the limit of 65536 bytes."


def test_what_a_method_refuses_itself_is_no_error(
    channel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    check = health_pb2_grpc.HealthStub(channel).Check
    assert error(check, health_pb2.HealthCheckRequest(service="x")).details() == (
        "There is no such service."
    )
    load = services.GRPCInferenceServiceStub(channel).RepositoryModelLoad
    assert error(load, pb.RepositoryModelLoadRequest()).code() is grpc.StatusCode.UNIMPLEMENTED
    assert not caplog.records


def test_watches_are_bounded_and_end_with_their_clients(served: Served) -> None:
    for _ in range(2):
        with alone(served.grpc_address) as channel, alone(served.grpc_address) as other:
            watch = health_pb2_grpc.HealthStub(channel).Watch
            watches = [watch(health_pb2.HealthCheckRequest()) for _ in range(64)]
            assert [next(updates).status for updates in watches] == [1] * 64
            with pytest.raises(grpc.RpcError) as caught:
                next(health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest()))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            for updates in watches:
                updates.cancel()
        time.sleep(1)


def test_of_many_calls_a_few_are_refused_in_one_iteration_of_the_event_loop() -> None:
    refused: list[str] = []

    class Context:
        """Counts what is refused; gRPC's own context needs a call."""

        def trailing_metadata(self) -> None:
            pass

        def set_trailing_metadata(self, _pairs: Any) -> None:
            pass

        async def abort(self, _code: Any, sentence: str) -> None:
            refused.append(sentence)

    async def refuse(_calls: Any, _context: Any) -> None:
        raise RequestError("No.")

    async def run() -> list[int]:
        method = answering(refuse)
        calls = [asyncio.ensure_future(method(None, Context())) for _ in range(9)]
        counts = [0]
        while not all(call.done() for call in calls):
            await asyncio.sleep(0)
            counts.append(len(refused))
        return counts

    counts = asyncio.run(run())
    assert counts[-1] == 9
    assert max(after - before for before, after in itertools.pairwise(counts)) <= 2


def test_a_message_is_freed_with_its_call_and_not_by_the_garbage_collector(channel: Any) -> None:
    infer = raw(channel, INFER)
    message = asking(b"a" * (MAX_BODY_BYTES - 1000), model_name="nobody").SerializeToString()

    def await_refused(calls: int) -> None:
        for _ in range(calls):
            assert error(infer, message).code() is grpc.StatusCode.NOT_FOUND

    await_refused(10)
    gc.collect()
    gc.disable()
    try:
        before = _resident()
        await_refused(160)  # 40 MB
        assert _resident() - before < 20 * 1024**2
    finally:
        gc.enable()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
