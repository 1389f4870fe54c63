"""Traces of a real server, received by OTLP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest

from predictor.protocol.sdk import messages
from tests.conftest import Checkpoints
from tests.otlp import Receiver, Span, export_to, receiving
from tests.server.process import Served, serve

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
SECRET = "a secret prompt"
"""A part of every prompt, which no span may have."""

FLAGS = ('--max_memory={"cpu": "1500KiB"}', "--max_model_len=128", "--prefill_chunk=16")
"""Half of a BLOOM's blocks are on disk, so there is something to wait for."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


@pytest.fixture(scope="module")
def server(receiver: Receiver, checkpoints: Checkpoints) -> Iterator[Served]:
    exports = (export_to.__module__, export_to.__name__, receiver.url)
    with serve(checkpoints("bloom"), *FLAGS, gated=True, faults=[exports]) as served:
        yield served.await_ready()


def span_of(receiver: Receiver, request_id: str) -> Span:
    """Wait for the server span of a request."""
    deadline = time.monotonic() + 20
    while True:
        for span in receiver.await_servers(1):
            if span.attributes.get("gen_ai.response.id") == request_id:
                return span
        assert time.monotonic() < deadline
        time.sleep(0.05)


def complete(
    server: Served,
    request_id: str,
    *,
    deadline: float = 60,
    answered_in: float = 60,
    **more: object,
) -> httpx.Response:
    """Send a completion with a deadline, for whose answer the client waits so many seconds."""
    return httpx.post(
        f"{server.url}/openai/v1/completions",
        json={"model": "m", "prompt": f"{SECRET} of 1", "max_tokens": 5, "temperature": 0, **more},
        headers={**CONTEXT, "X-Request-Id": request_id, "X-Request-Timeout": str(deadline)},
        timeout=answered_in,
    )


def hang_up(server: Served, request_id: str, **more: object) -> None:
    with pytest.raises(httpx.ReadTimeout):
        complete(server, request_id, answered_in=0.3, **more)


def test_a_request_is_a_span_of_its_callers_trace_with_queue_prefill_and_decode(
    server: Served, receiver: Receiver
) -> None:
    before = time.time()
    assert complete(server, "whole").status_code == 200
    span = span_of(receiver, "whole")
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
    assert (span.name, span.service) == ("text_completion m", "bloom-service")
    queue, prefill, decode = (
        receiver.children(span)[name] for name in ("queue", "prefill", "decode")
    )
    times = [
        *(before, span.began, queue.began, queue.ended, prefill.ended, decode.ended),
        *(span.ended, time.time()),
    ]
    assert times == sorted(times)
    assert (queue.ended, prefill.ended) == (prefill.began, decode.began)
    assert {one.trace_id for one in (queue, prefill, decode)} == {TRACE}


def test_attributes_are_those_of_generative_ai(server: Served, receiver: Receiver) -> None:
    usage = complete(server, "attributes").json()["usage"]
    span = span_of(receiver, "attributes")
    first = receiver.children(span)["prefill"].ended - span.began
    assert span.attributes.pop("predictor.first_token.seconds") == pytest.approx(first, abs=0.1)
    duration = span.attributes.pop("predictor.request.seconds")
    assert duration == pytest.approx(span.ended - span.began, abs=0.1)
    span.attributes.pop("gen_ai.usage.cache_read.input_tokens", None)
    assert span.attributes == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": "/openai/v1/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "accelerate-predictor",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.response.id": "attributes",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0,
    }


def test_phases_tell_how_long_they_waited_for_weights(server: Served, receiver: Receiver) -> None:
    before = server.gauge("predictor_weights_stall_seconds_total")
    complete(server, "stalls", max_tokens=40)
    waited = server.gauge("predictor_weights_stall_seconds_total") - before
    children = receiver.children(span_of(receiver, "stalls"))
    stalls = {
        name: children[name].attributes["predictor.weights_stall.seconds"]
        for name in ("prefill", "decode")
    }
    assert waited > 0
    assert sum(stalls.values()) == pytest.approx(waited, rel=0.3)
    assert children["decode"].events["weights stall"] == {
        "predictor.weights_stall.seconds": stalls["decode"]
    }
    assert "predictor.weights_stall.seconds" not in children["queue"].attributes


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_reply_that_a_stop_string_ends_has_all_phases(
    server: Served, receiver: Receiver, is_streamed: bool
) -> None:
    text = complete(server, "unstopped", max_tokens=20).json()["choices"][0]["text"]
    name = f"stopped {is_streamed}".replace(" ", "-")
    complete(server, name, max_tokens=20, stop=text[len(text) // 2], stream=is_streamed)
    span = span_of(receiver, name)
    assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert receiver.children(span).keys() == {"queue", "prefill", "decode"}


def test_a_request_that_ends_while_it_waits_has_a_queue_until_then(
    server: Served, receiver: Receiver
) -> None:
    with ThreadPoolExecutor(1) as pool, server.gate.closed():
        prefilling = pool.submit(complete, server, "reads", deadline=1.5)
        server.gate.await_pass()
        assert complete(server, "waits", deadline=0.3).status_code == 504
        events = complete(server, "waits-for-events", deadline=0.3, stream=True)
        assert (events.status_code, "0.3 seconds" in events.text) == (200, True)
        hang_up(server, "hangs-up")
        hang_up(server, "hangs-up-on-events", stream=True)
        assert prefilling.result().status_code == 504
    assert complete(server, "afterwards").status_code == 200

    ends = {"waits": "504", "waits-for-events": "504", "hangs-up": "cancelled"}
    for name, error in {**ends, "hangs-up-on-events": "cancelled"}.items():
        span = span_of(receiver, name)
        (queue,) = receiver.children(span).values()
        assert (queue.name, queue.attributes["error.type"]) == ("queue", error), name
        assert span.began <= queue.began < queue.ended - 0.2
        assert queue.ended == pytest.approx(span.ended, abs=0.1)
        failed = 2 if error == "504" else 0
        assert (span.status, queue.status) == (failed, failed), name


def test_a_request_that_ends_while_its_prompt_is_read_has_a_prefill_until_then(
    server: Served, receiver: Receiver
) -> None:
    with server.gate.closed():
        assert complete(server, "reads-until-then", deadline=0.5).status_code == 504
    span = span_of(receiver, "reads-until-then")
    queue, prefill = (receiver.children(span)[name] for name in ("queue", "prefill"))
    assert (queue.status, queue.ended) == (0, prefill.began)
    assert (prefill.status, prefill.attributes["error.type"]) == (2, "504")
    assert prefill.ended == pytest.approx(span.ended, abs=0.1)
    assert receiver.children(span).keys() == {"queue", "prefill"}


def test_a_grpc_call_is_a_span_of_its_callers_trace(server: Served, receiver: Receiver) -> None:
    message = messages.ModelInferRequest(model_name="m")
    message.parameters["max_new_tokens"].int64_param = 4
    tensor = message.inputs.add(name="text", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(SECRET.encode())
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
        )
        infer(message, metadata=(*CONTEXT.items(), ("x-request-id", "by-grpc")), timeout=60)
        with server.gate.closed():
            named = (*CONTEXT.items(), ("x-request-id", "cancelled-by-grpc"))
            call = infer.future(message, metadata=named, timeout=60)
            server.gate.await_pass()
            call.cancel()
            cancelled = span_of(receiver, "cancelled-by-grpc")
    assert (cancelled.status, cancelled.attributes["rpc.grpc.status_code"]) == (0, 1)
    assert receiver.children(cancelled)["prefill"].attributes["error.type"] == "cancelled"
    span = span_of(receiver, "by-grpc")
    assert (span.trace_id, span.parent_id, span.name) == (TRACE, PARENT, "text_completion m")
    assert span.attributes["rpc.system"] == "grpc"
    assert span.attributes["rpc.method"] == "ModelInfer"
    assert span.attributes["rpc.grpc.status_code"] == 0
    assert span.attributes["gen_ai.usage.output_tokens"] == 4
    assert receiver.children(span).keys() == {"queue", "prefill", "decode"}


def test_a_request_that_is_refused_is_a_span_with_its_status(
    server: Served, receiver: Receiver
) -> None:
    assert complete(server, "refused", max_tokens=-1).status_code == 400
    span = span_of(receiver, "refused")
    assert span.attributes["http.response.status_code"] == 400
    assert (span.status, receiver.children(span)) == (0, {})


def test_a_request_whose_caller_is_not_sampled_is_not_traced(
    server: Served, receiver: Receiver
) -> None:
    url = f"{server.url}/openai/v1/completions"
    body = {"model": "m", "prompt": SECRET, "max_tokens": 1}
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00", "X-Request-Id": "unsampled"}
    assert httpx.post(url, json=body, headers=unsampled, timeout=60).status_code == 200
    complete(server, "after")
    span_of(receiver, "after")
    assert "unsampled" not in {span.attributes.get("gen_ai.response.id") for span in receiver.spans}


def test_probes_and_scrapes_are_no_spans_and_no_span_has_a_prompt(
    server: Served, receiver: Receiver
) -> None:
    httpx.get(f"{server.url}/v2/health/ready")
    httpx.get(f"{server.url}/metrics")
    complete(server, "last")
    span_of(receiver, "last")
    assert {span.attributes.get("http.request.method", "POST") for span in receiver.spans} == {
        "POST"
    }
    assert SECRET.encode() not in receiver.raw
    assert receiver.raw
