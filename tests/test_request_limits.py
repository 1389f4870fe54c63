"""How long a request may take."""

from __future__ import annotations

import math

import pytest

from predictor.bulk import bulk_work
from predictor.errors import RequestError
from predictor.request_limits import time_limit
from predictor.tasks.request import EncoderRequest


def test_the_least_limit_counts():
    assert time_limit(EncoderRequest(()), None, 600) == 600
    assert time_limit(EncoderRequest((), 20), None, 600) == 20
    assert time_limit(EncoderRequest((), 20), 3, 600) == 3


def test_a_request_cannot_raise_the_servers_limit():
    with pytest.raises(RequestError, match="this server's limit 600 seconds"):
        time_limit(EncoderRequest((), 601), None, 600)


def test_bulk_work_has_no_limit_but_its_own():
    with bulk_work():
        assert time_limit(EncoderRequest(()), None, 600) == math.inf
        assert time_limit(EncoderRequest((), 9000), None, 600) == 9000
