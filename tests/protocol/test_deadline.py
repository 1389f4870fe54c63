"""Which requests are counted."""

from __future__ import annotations

import asyncio

from prometheus_client import REGISTRY

from predictor.bulk import bulk_work
from predictor.protocol.http.deadline import counted


async def count() -> None:
    with counted("apart-too", "v9"):
        pass


def test_bulk_work_is_no_request() -> None:
    labels = {"model_name": "apart-too", "protocol": "v9"}
    with bulk_work():
        asyncio.run(count())
    assert REGISTRY.get_sample_value("predictor_request_seconds_count", labels) is None

    asyncio.run(count())
    assert REGISTRY.get_sample_value("predictor_request_seconds_count", labels) == 1
    assert REGISTRY.get_sample_value("predictor_requests_total", labels | {"outcome": "ok"}) == 1
