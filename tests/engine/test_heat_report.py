"""The report of experts' use over a real channel, when there is something new."""

from __future__ import annotations

import socket
from typing import Any

from predictor.engine.process.channel import Channel
from predictor.engine.process.heat_report import HeatReport
from predictor.engine.process.messages import ExpertsUsed
from predictor.metric_updates import Update
from predictor.mixture.heat import ExpertHeat, LayerHeat

METRIC = "predictor_expert_hottest_ratio"


def test_the_use_of_experts_is_reported_when_it_has_changed() -> None:
    ours, theirs = (Channel(end) for end in socket.socketpair())
    tokens = {"first": [0, 0], "second": [1, 3]}
    report = HeatReport(theirs, ExpertHeat(tokens, ()), "m")
    report.send()
    report.send()
    tokens["first"][1] = 2
    report.send()
    theirs.close()

    messages: list[Any] = [ours.receive() for _ in range(3)]
    ours.close()
    assert messages[2] is None
    assert messages[0].layers == (
        LayerHeat("first", (0, 0), {}),
        LayerHeat("second", (1, 3), {}),
    )
    assert messages[1] == ExpertsUsed(
        (LayerHeat("first", (0, 2), {}), messages[0].layers[1]),
        [
            Update(METRIC, ("m", "first"), "", 0),
            Update(METRIC, ("m", "second"), "", 0),
            Update(METRIC, ("m", "first"), "set", 1.0),
            Update(METRIC, ("m", "second"), "set", 0.75),
        ],
    )


def test_a_model_without_experts_has_nothing_to_report() -> None:
    ours, theirs = (Channel(end) for end in socket.socketpair())
    HeatReport(theirs, ExpertHeat({}, ()), "m").send()
    theirs.close()
    assert ours.receive() is None
    ours.close()
