"""Estimate how fast a placement decodes, from bandwidths: an estimate, and no measurement.

A forward pass takes as long as the slowest of three that overlap: reading from disk, copying to the
GPU, and computing. With one buffer for what is streamed, computing overlaps neither. A small batch
computes as fast as memory gives it the weights, and one of more than `BREAKEVEN_ROWS` takes longer
in proportion. So tokens/s are the rows of a batch divided by that time. Reading the KV cache is
left out, so that real rates are lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from predictor.placement.plan import ExpertSlots, Placement

GB = 1000**3

Resource = Literal["disk", "link", "memory", "gpu"]

RESOURCE_TITLES: Mapping[Resource, str] = {
    "disk": "disk",
    "link": "link to the GPU",
    "memory": "main memory",
    "gpu": "GPU memory",
}
"""The bandwidths by name, as people call them."""

TOKENS, PASSES = "tokens/s", "passes/s"
"""The units of rates."""

BREAKEVEN_ROWS: Mapping[Resource, int] = {"memory": 16, "gpu": 200}
"""Rows whose arithmetic takes as long as reading the weights: some 16 on a processor, as warm-up
measures (`predictor.engine.warmup`). On a GPU it is the quotient of data sheets: 156 in 16 bits for
an A100 (312 TFLOP/s, 2.0 TB/s), 295 for an H100 (989, 3.35)."""

_COMPUTING: frozenset[Resource] = frozenset({"memory", "gpu"})
"""The resources that are in use while a device computes; the others bring it weights."""

ASSUMED, STATED, MEASURED = "assumed", "stated", "measured"
"""Where a bandwidth is from."""


@dataclass(frozen=True, slots=True)
class Bandwidths:
    """Bytes per second. The defaults are assumptions about hardware that nobody has described.

    Attributes:
        disk: From the offload volume: a good network volume gives 1 GB/s, a local NVMe 2 to 7.
        link: From page-locked main memory to a GPU: PCIe 4.0 with 16 lanes gives some 25 GB/s.
        memory: From main memory to the processor: some channels of a server give 50 GB/s.
        gpu: From a GPU's memory to its cores: 0.3 to 1 TB/s in small cards, 2 to 5 in large ones.
        sources: Where each one is from: `STATED` or `MEASURED`; others are `ASSUMED`.
    """

    disk: int = 1 * GB
    link: int = 25 * GB
    memory: int = 50 * GB
    gpu: int = 1000 * GB
    sources: Mapping[Resource, str] = field(default_factory=dict)

    def of(self, resource: Resource) -> int:
        """Return the bytes per second of a resource."""
        speed: int = getattr(self, resource)
        return speed

    def as_json(self) -> dict[str, Any]:
        """Return each bandwidth in bytes per second, and where it is from."""
        return {
            resource: {
                "bytes_per_second": self.of(resource),
                "source": self.sources.get(resource, ASSUMED),
            }
            for resource in RESOURCE_TITLES
        }


@dataclass(frozen=True, slots=True)
class DecodeRate:
    """The estimated rate of one batch.

    Attributes:
        rows: Sequences in the batch.
        seconds: The duration of a forward pass that gives each row one token.
        limited_by: The resource that takes longest.
    """

    rows: int
    seconds: float
    limited_by: Resource

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all rows together; without a weight, as many as there are rows."""
        return self.rows / self.seconds if self.seconds else float(self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers; times in seconds."""
        return {
            "rows": self.rows,
            "seconds_per_pass": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "limited_by": self.limited_by,
        }


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated rates of a placement.

    Attributes:
        single: One request alone.
        full: As many requests of full length as the KV cache holds, in one batch.
        bandwidths: What it is computed from.
        unit: What is counted: tokens, or the forward passes of an encoder, which generates none.
    """

    single: DecodeRate
    full: DecodeRate
    bandwidths: Bandwidths
    unit: str = TOKENS

    def as_json(self) -> dict[str, Any]:
        """Return the numbers and what they were computed from."""
        return {
            "is_estimate": True,
            "unit": self.unit,
            "single_request": self.single.as_json(),
            "full_batch": self.full.as_json(),
            "bandwidths": self.bandwidths.as_json(),
        }


def estimate_rates(
    placement: Placement, bandwidths: Bandwidths, max_rows: int, *, is_encoder: bool = False
) -> Estimate:
    """Return the estimated rates of a placement.

    Args:
        placement: The placement.
        bandwidths: Bytes per second of its tiers.
        max_rows: Most sequences in one batch.
        is_encoder: Whether the model generates nothing, so that forward passes are counted.
    """
    if is_encoder:
        single = _rate(placement, bandwidths, 1)
        return Estimate(single, single, bandwidths, PASSES)
    rows = max(1, min(max_rows, full_length_sequences(placement)))
    return Estimate(_rate(placement, bandwidths, 1), _rate(placement, bandwidths, rows), bandwidths)


def full_length_sequences(placement: Placement) -> int:
    """Return how many sequences of full length a placement has KV cache or states for."""
    cached = placement.kv_tokens // placement.max_model_len if placement.kv_tokens else None
    counts = [count for count in (cached, placement.state_slots or None) if count is not None]
    return min(counts, default=1)


def bytes_by_resource(placement: Placement, rows: int) -> dict[Resource, int]:
    """Return the bytes that one forward pass of decoding moves through each resource.

    Of experts that are read one by one, the expected number of different ones is counted, as if
    the router used all alike. Routers do not, so that real slots are hit more often.

    Args:
        placement: The placement.
        rows: Sequences in the batch, of which each adds one token.
    """
    on_gpus = sum(tier.weights for tier in placement.tiers if tier.name.isdigit())
    waiting, on_disk = placement.tier("cpu").weights, placement.tier("disk").weights
    all_experts = sum(layer.count * layer.size for layer in placement.experts)
    dense_on_disk = max(0, on_disk - all_experts)
    used = missed = copied = 0.0
    for layer in placement.experts:
        size = _distinct(layer, rows) * layer.size
        used += size
        missed += size * (1 - layer.in_memory / layer.count)
        copied += size * (1 - layer.device_slots / layer.count)
    read = dense_on_disk + round(missed)
    if placement.execution_device == "cpu":
        return {"disk": read, "memory": waiting + dense_on_disk + round(used)}
    streamed = waiting + dense_on_disk
    return {
        "disk": read,
        "link": streamed + round(copied),
        "gpu": on_gpus + streamed + round(used),
    }


def _distinct(layer: ExpertSlots, rows: int) -> float:
    """Return the expected number of different experts that the tokens of a batch use."""
    return layer.count * (1 - (1 - layer.routed / layer.count) ** rows)


def _arithmetic(resource: Resource, rows: int) -> float:
    """Return how many times longer computing takes than reading the weights; 1 if it is hidden."""
    return max(1.0, rows / BREAKEVEN_ROWS[resource]) if resource in BREAKEVEN_ROWS else 1.0


def _rate(placement: Placement, bandwidths: Bandwidths, rows: int) -> DecodeRate:
    seconds = {
        resource: size / bandwidths.of(resource) * _arithmetic(resource, rows)
        for resource, size in bytes_by_resource(placement, rows).items()
    }
    slowest = max(seconds, key=lambda resource: seconds[resource])
    total = seconds[slowest]
    if placement.stream_buffers == 1:
        computing = _COMPUTING & seconds.keys()
        total = max(seconds[resource] for resource in seconds.keys() - computing)
        total += sum(seconds[resource] for resource in computing)
    return DecodeRate(rows, total, slowest)
