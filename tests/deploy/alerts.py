"""Series that make each alert of the chart fire, and series that leave it quiet."""

from __future__ import annotations

from dataclasses import dataclass

OF = 'namespace="default",model_name="demo",pod="demo-predictor-1"'
CONTAINER = 'namespace="default",pod="demo-predictor-1",container="kserve-container"'
OTHER = 'namespace="default",model_name="other",pod="other-predictor-1"'

_RESTARTS = f"kube_pod_container_status_restarts_total{{{CONTAINER}}}"
_EXIT_CODE = f"kube_pod_container_status_last_terminated_exitcode{{{CONTAINER}}}"
_WAITING = f"predictor_sequences_waiting{{{OF}}}"
_STALLS = f"predictor_weights_stall_seconds_total{{{OF}}}"
_PASSES = f"predictor_step_seconds_sum{{{OF}}}"


@dataclass(frozen=True, slots=True)
class Case:
    """Series by name, a value each minute in promtool's notation, and what comes of them.

    Attributes:
        series: The values of each series.
        minute: When the alerts are looked at.
        fires: Whether the alert fires then.
    """

    series: dict[str, str]
    minute: int
    fires: bool


ALERTS: dict[str, tuple[Case, ...]] = {
    "PredictorNotReady": (
        Case({f"predictor_ready{{{OF}}}": "0x60"}, 20, True),
        Case({f"predictor_ready{{{OTHER}}}": "1x60"}, 20, True),  # none is scraped
        Case({f"predictor_ready{{{OF}}}": "0x60"}, 10, False),
        Case({f"predictor_ready{{{OF}}}": "1x60"}, 20, False),
    ),
    "PredictorHangs": (
        Case({f"predictor_engine_stalled{{{OF}}}": "0x5 1x10"}, 10, True),
        Case({f"predictor_engine_stalled{{{OTHER}}}": "0x5 1x10"}, 10, False),
        Case({f"predictor_engine_stalled{{{OF}}}": "0x9 1 0x9"}, 12, False),
    ),
    "PredictorCannotStart": (
        Case({_RESTARTS: "0x5 1x60", _EXIT_CODE: "_x5 78x60"}, 20, True),
        Case({_RESTARTS: "0x5 1x60", _EXIT_CODE: "_x5 1x60"}, 20, False),
        Case({_RESTARTS: "0x5 1x60", _EXIT_CODE: "_x5 78x60"}, 50, False),  # it serves since
    ),
    "PredictorFailsRequests": (
        Case({f'predictor_requests_total{{outcome="failed",{OF}}}': "0+1x60"}, 20, True),
        Case({f'predictor_requests_total{{outcome="ok",{OF}}}': "0+1x60"}, 20, False),
        Case({f'predictor_requests_total{{outcome="failed",{OF}}}': "7x60"}, 20, False),
    ),
    "PredictorRejectsRequests": (
        Case({f'predictor_requests_total{{outcome="rejected",{OF}}}': "0+1x60"}, 20, True),
        Case({f'predictor_requests_total{{outcome="rejected",{OTHER}}}': "0+1x60"}, 20, False),
        Case({f'predictor_requests_total{{outcome="failed",{OF}}}': "0+1x60"}, 20, False),
    ),
    "PredictorQueueGrows": (
        Case({_WAITING: "1+1x60"}, 40, True),
        Case({_WAITING: "60-1x60"}, 40, False),
        Case({_WAITING: "8x60"}, 40, False),
        Case({_WAITING: "0 2 0 3 0 4 0 5 0 6 0 7 0 8 0 9 0 10 0 11 0 12 0 13 0"}, 24, False),
    ),
    "PredictorPreempts": (
        Case({f"predictor_preemptions_total{{{OF}}}": "0+3x60"}, 40, True),
        Case({f"predictor_preemptions_total{{{OF}}}": "0x20 1x40"}, 40, False),
    ),
    "PredictorWaitsForWeights": (
        Case({_STALLS: "0+59x90", _PASSES: "0+60x90"}, 60, True),
        Case({_STALLS: "0+50x90", _PASSES: "0+60x90"}, 60, False),
        Case({_STALLS: "0x90", _PASSES: "0x90"}, 60, False),  # nothing runs
    ),
}
"""The cases of each alert, by its name."""
