"""The command ``plan``: where a model would go, on this pod's resources or on stated ones.

`predictor.cli` turns errors into an exit code. What is printed is made by `placement` and
`deployment`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from predictor import pod, startup
from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.task_detection import GENERATING
from predictor.deployment import render
from predictor.deployment.replicas import ClaimReads
from predictor.deployment.sizing import size_deployment
from predictor.errors import ConfigurationError, DoesNotFit
from predictor.placement import comparison, report
from predictor.placement.comparison import Alternative
from predictor.placement.estimate import (
    MEASURED,
    RESOURCE_TITLES,
    STATED,
    Bandwidths,
    Estimate,
    Resource,
    estimate_rates,
)
from predictor.placement.picture import Drawing, draw
from predictor.placement.plan import Placement
from predictor.placing import place
from predictor.pod.resources import PodResources
from predictor.pod.stated import RESOURCES, parse_alternative, stated_resources
from predictor.prepared import Measured, Prepared
from predictor.quantity import parse_bytes
from predictor.settings import Settings, explicit_settings
from predictor.tasks.loading import open_checked_tokenizer
from predictor.weights.store.packing import measure_file

_PICTURES = ("table", "json", "svg", "html")
"""The forms of output that may show several alternatives."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the flags of ``plan`` say, besides settings.

    Attributes:
        stated: The stated resources by name, see `RESOURCES`; empty for those of this pod.
        alternatives: Resources to compare, as `parse_alternative` takes them.
        bandwidths: The stated bandwidths by resource, such as ``2GB``, or ``measured``.
        output: The form of output.
        requests: Resources that a deployment requests in addition to the planned ones.
        replicas: Pods whose reads from one claim are shown; None for none.
    """

    stated: dict[str, str]
    alternatives: Sequence[str]
    bandwidths: dict[Resource, str]
    output: str
    requests: dict[str, Any]
    replicas: int | None = None


def take_request(flags: dict[str, Any]) -> PlanRequest:
    """Return the flags that are no settings, and remove them from `flags`."""
    stated = {name: flags.pop(name, None) for name in RESOURCES}
    speeds = {resource: flags.pop(f"{resource}_bandwidth", None) for resource in RESOURCE_TITLES}
    return PlanRequest(
        stated={name: amount for name, amount in stated.items() if amount},
        alternatives=flags.pop("compare", ()),
        bandwidths={resource: speed for resource, speed in speeds.items() if speed is not None},
        output=flags.pop("output"),
        requests={name: flags.pop(name, None) for name in ("processors", "gpu_resource")},
        replicas=flags.pop("replicas", None),
    )


def plan_text(request: PlanRequest, settings: Settings, flags: dict[str, Any]) -> tuple[str, int]:
    """Return what ``plan`` prints, and its exit code.

    Args:
        request: The flags that are no settings.
        settings: The settings.
        flags: The flags that are settings.

    Raises:
        DoesNotFit: No placement fits the only resources.
        ConfigurationError: A flag is invalid.
    """
    if request.alternatives and request.output not in _PICTURES:
        raise ConfigurationError(
            f"--compare prints {', '.join(_PICTURES)}, and not {request.output}, which is for one "
            "pod."
        )
    if request.replicas and (request.alternatives or request.output not in ("table", "json")):
        raise ConfigurationError(
            "--replicas is for one plan as a table or JSON: leave out --compare, and --output."
        )
    several = [_alternative_resources(request, text) for text in request.alternatives]
    checkpoint = startup.open_checkpoint(settings, needs_weights=False)
    bandwidths = _bandwidths(request, checkpoint)
    if several:
        model = startup.measure(settings, checkpoint, samples=True)
        alternatives = [
            _alternative(settings, model, text, resources, bandwidths)
            for text, resources in zip(request.alternatives, several, strict=True)
        ]
        fits = any(one.drawing for one in alternatives)
        text = _compared(request.output, alternatives, bandwidths)
        return text, 0 if fits else DoesNotFit.exit_code
    return _one_plan(request, settings, flags, checkpoint, bandwidths), 0


def _one_plan(
    request: PlanRequest,
    settings: Settings,
    flags: dict[str, Any],
    checkpoint: Checkpoint,
    bandwidths: Bandwidths,
) -> str:
    if request.stated:
        resources = stated_resources(**_amounts(request.stated))
    else:
        resources = pod.read_resources(settings.offload_folder, gpu_fraction=settings.gpu_fraction)
    model = startup.measure(settings, checkpoint, samples=True)
    prepared = place(settings, model, resources)
    _check_tokenizer(settings, prepared)
    placement = prepared.placement
    if request.output in _PICTURES:
        drawing = Drawing(placement, estimate=_estimate(model, placement, bandwidths))
        text = _single(request.output, drawing, bandwidths, with_rates=bool(request.bandwidths))
        return text if request.replicas is None else _with_reads(request, text, drawing, bandwidths)
    explicit = explicit_settings(settings, flags, os.environ)
    requirements = size_deployment(
        placement, resources, settings, explicit, stored_dtype=checkpoint.dtype, **request.requests
    )
    renderer = render.RENDERERS[request.output]
    return render.to_yaml(render.summary(placement), renderer(requirements))


def _check_tokenizer(settings: Settings, prepared: Prepared) -> None:
    if prepared.checkpoint.has_weights:
        open_checked_tokenizer(
            prepared.checkpoint.path,
            prepared.encoder_facts,
            trust_remote_code=settings.trust_remote_code,
        )


def _alternative(
    settings: Settings,
    model: Measured,
    text: str,
    resources: PodResources,
    bandwidths: Bandwidths,
) -> Alternative:
    try:
        prepared = place(settings, model, resources)
    except DoesNotFit as error:
        return Alternative(text, refusal=str(error))
    placement = prepared.placement
    estimate = _estimate(model, placement, bandwidths)
    return Alternative(text, Drawing(placement, text, estimate))


def _estimate(model: Measured, placement: Placement, bandwidths: Bandwidths) -> Estimate:
    is_encoder = model.checkpoint.task not in GENERATING
    return estimate_rates(placement, bandwidths, model.rows, is_encoder=is_encoder)


def _alternative_resources(request: PlanRequest, text: str) -> PodResources:
    """Return an alternative's resources; the flags state those that it leaves open."""
    amounts = {**request.stated, **parse_alternative(text)}
    if "memory" not in amounts:
        raise ConfigurationError(
            f"The alternative {text!r} states no memory; add memory=64GiB to it, or --memory for "
            "all alternatives."
        )
    return stated_resources(**_amounts(amounts))


def _amounts(stated: dict[str, str]) -> dict[str, str | None]:
    return {name: None if stated.get(name) == "none" else stated.get(name) for name in RESOURCES}


def _bandwidths(request: PlanRequest, checkpoint: Checkpoint) -> Bandwidths:
    speeds: dict[str, int] = {}
    sources: dict[Resource, str] = {}
    for resource, text in request.bandwidths.items():
        is_measured = resource == "disk" and text == MEASURED
        speed = _measured(checkpoint) if is_measured else _stated_speed(resource, text)
        speeds[resource], sources[resource] = speed, MEASURED if is_measured else STATED
    return Bandwidths(**speeds, sources=sources)


def _stated_speed(resource: Resource, text: str) -> int:
    try:
        speed = parse_bytes(text.strip().removesuffix("/s"))
    except ValueError as error:
        raise ConfigurationError(f"--{resource}_bandwidth cannot be read: {error}.") from None
    if speed < 1:
        raise ConfigurationError(f"--{resource}_bandwidth is {text}; it must be above 0.")
    return speed


def _measured(checkpoint: Checkpoint) -> int:
    """Return the bytes per second at which the checkpoint's largest file is read."""
    stored = checkpoint.stored
    if stored is None or not stored.files or checkpoint.remote is not None:
        raise ConfigurationError(
            "--disk_bandwidth measured reads a file of the model, and there is none here; state "
            "an amount such as 2GB."
        )
    file = max(stored.files, key=lambda file: file.stat().st_size)
    try:
        return max(1, int(measure_file(file)))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None


def _compared(output: str, alternatives: Sequence[Alternative], bandwidths: Bandwidths) -> str:
    drawings = [one.drawing for one in alternatives if one.drawing is not None]
    if output == "html":
        return comparison.comparison_page(alternatives, bandwidths)
    if output == "json":
        return json.dumps(comparison.comparison_json(alternatives), indent=2)
    if output == "svg" and drawings:
        return draw(drawings)
    return comparison.table(alternatives, bandwidths)


def _with_reads(request: PlanRequest, text: str, drawing: Drawing, bandwidths: Bandwidths) -> str:
    """Add the reads of replicas to a plan's text."""
    replicas = request.replicas or 1
    claim = ClaimReads.of(drawing.placement, replicas, bandwidths)
    if request.output == "json":
        return json.dumps({**json.loads(text), "claim": claim.as_json()}, indent=2)
    return "\n".join([text, *claim.lines()])


def _single(output: str, drawing: Drawing, bandwidths: Bandwidths, *, with_rates: bool) -> str:
    """Return one placement; `with_rates` is whether a table has its estimated rates."""
    placement, estimate = drawing.placement, drawing.estimate
    if output == "html":
        return comparison.placement_page(drawing, bandwidths)
    if output == "svg":
        return draw([drawing])
    rates = None if estimate is None else estimate.as_json()
    if output == "json":
        return json.dumps({**report.as_json(placement), "estimate": rates}, indent=2)
    lines = [] if estimate is None or not with_rates else [report.describe_estimate(estimate)]
    return "\n".join([report.table(placement), *lines])
