"""What several replicas of an offloaded model read from one claim: arithmetic for `plan`."""

from __future__ import annotations

from dataclasses import dataclass

from predictor.placement.estimate import ASSUMED, GB, Bandwidths
from predictor.placement.plan import Placement
from predictor.quantity import format_bytes


@dataclass(frozen=True, slots=True)
class ClaimReads:
    """The reads of replicas that share a claim.

    Attributes:
        replicas: How many there are.
        pass_bytes: Bytes that one replica reads in a forward pass at most; experts that stay in
            memory and those that no token uses are not read.
        bandwidth: Bytes that the claim gives in a second to all pods together.
        source: Where the bandwidth is from, see `Bandwidths`.
    """

    replicas: int
    pass_bytes: int
    bandwidth: int
    source: str

    @classmethod
    def of(cls, placement: Placement, replicas: int, bandwidths: Bandwidths) -> ClaimReads:
        """Return the reads of replicas that are all placed alike."""
        disk = sum(tier.weights for tier in placement.tiers if tier.name == "disk")
        source = bandwidths.sources.get("disk", ASSUMED)
        return cls(replicas, disk, bandwidths.disk, source)

    @property
    def total_bytes(self) -> int:
        """Bytes that all replicas read if each computes one forward pass."""
        return self.replicas * self.pass_bytes

    @property
    def pass_seconds(self) -> float:
        """Seconds of a forward pass at least, while all replicas compute."""
        return self.total_bytes / self.bandwidth

    def lines(self) -> list[str]:
        """Return the figures as sentences."""
        if not self.pass_bytes:
            return [f"{self.replicas} replicas read nothing from a claim while they serve"]
        each, total = format_bytes(self.pass_bytes), format_bytes(self.total_bytes)
        one = self.pass_bytes / self.bandwidth
        advice = "; --disk_bandwidth states it" if self.source == ASSUMED else ""
        return [
            f"{self.replicas} replicas on one claim read at most {each} each in a forward pass, "
            f"{total} together",
            f"at {self.bandwidth / GB:.3g} GB/s of the claim ({self.source}{advice}), a forward "
            f"pass takes at least {self.pass_seconds:.2f} s; with one replica, {one:.2f} s",
        ]

    def as_json(self) -> dict[str, float | str]:
        """Return the figures in bytes and seconds."""
        return {
            "replicas": self.replicas,
            "pass_bytes": self.pass_bytes,
            "total_bytes": self.total_bytes,
            "bandwidth": self.bandwidth,
            "bandwidth_source": self.source,
            "pass_seconds": self.pass_seconds,
        }
