"""What replicas on one claim read."""

from __future__ import annotations

from predictor.deployment.replicas import ClaimReads
from predictor.placement.estimate import MEASURED, Bandwidths
from tests.deployment.deployments import OFFLOADED, RESIDENT, placed
from tests.placement.small import MIB

ON_DISK = 10 * MIB
"""The one unit of `OFFLOADED` that is on disk."""


def test_each_replica_reads_what_is_on_disk_in_every_pass() -> None:
    bandwidths = Bandwidths(20 * MIB, sources={"disk": MEASURED})
    claim = ClaimReads.of(placed(OFFLOADED), 3, bandwidths)
    assert claim.as_json() == {
        "replicas": 3,
        "pass_bytes": ON_DISK,
        "total_bytes": 3 * ON_DISK,
        "bandwidth": 20 * MIB,
        "bandwidth_source": "measured",
        "pass_seconds": 1.5,
    }
    assert claim.lines() == [
        "3 replicas on one claim read at most 10.00 MiB each in a forward pass, 30.00 MiB together",
        "at 0.021 GB/s of the claim (measured), a forward pass takes at least 1.50 s; "
        "with one replica, 0.50 s",
    ]


def test_a_bandwidth_that_nobody_stated_is_called_assumed() -> None:
    lines = ClaimReads.of(placed(OFFLOADED), 2, Bandwidths()).lines()
    assert lines[1].startswith("at 1 GB/s of the claim (assumed; --disk_bandwidth states it), ")


def test_replicas_of_a_resident_model_read_nothing() -> None:
    claim = ClaimReads.of(placed(RESIDENT), 4, Bandwidths())
    assert claim.lines() == ["4 replicas read nothing from a claim while they serve"]
