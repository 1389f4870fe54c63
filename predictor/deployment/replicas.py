"""What several replicas of an offloaded model read from one claim: arithmetic for `plan`."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    replicas: int
    pass_bytes: int
    bandwidth: int

    @classmethod
    def of(cls, placement: Placement, replicas: int, *, bandwidth: int) -> ClaimReads:
        """Return the reads of replicas that are all placed alike."""
        disk = sum(tier.weights for tier in placement.tiers if tier.name == "disk")
        return cls(replicas, disk, bandwidth)

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
        return [
            f"{self.replicas} replicas on one claim read at most {each} each in a forward pass, "
            f"{total} together",
            f"at {format_bytes(self.bandwidth)}/s of the claim, a forward pass takes at least "
            f"{self.pass_seconds:.2f} s; with one replica, {one:.2f} s",
        ]

    def as_json(self) -> dict[str, float]:
        """Return the figures in bytes and seconds."""
        return {
            "replicas": self.replicas,
            "pass_bytes": self.pass_bytes,
            "total_bytes": self.total_bytes,
            "bandwidth": self.bandwidth,
            "pass_seconds": self.pass_seconds,
        }
