"""Draw placements as one SVG: where the weights are, and what fills each tier.

The picture is complete in itself: it loads nothing, and has its own colours for light and dark.
Every colour is named by a text beside it. `STYLE` can be left out where a page has it already.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from predictor.placement.estimate import Estimate
from predictor.placement.picture_shapes import (
    STYLE,
    WIDTH,
    Segment,
    bar,
    cells,
    legend,
    line,
    paper,
)
from predictor.placement.plan import Placement, Tier
from predictor.placement.report import describe_cache, describe_estimate, describe_experts, title_of
from predictor.placement.units import describe_dtype
from predictor.quantity import format_bytes

_GAP = 24
_MARGIN = 8
_MOST_CELLS = 640
"""Parts of a model that are drawn one by one. More would be too small to be told apart."""

_CHARACTERS = 76
"""Characters of a line that is as wide as the picture."""

_KINDS = {
    "weights": "weights",
    "kv": "KV cache",
    "staging": "staging",
    "activations": "activations",
    "experts": "experts",
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A placement to draw.

    Attributes:
        placement: The placement.
        heading: A line above it, such as the resources that it is for; empty for none.
        estimate: Its estimated rates; None leaves them out.
    """

    placement: Placement
    heading: str = ""
    estimate: Estimate | None = None


def draw(drawings: Sequence[Drawing], *, styled: bool = True) -> str:
    """Return placements side by side as an SVG document.

    Args:
        drawings: The placements.
        styled: Whether the SVG has its colours in it; else the page around it has `STYLE`.
    """
    columns = [_Column(drawing) for drawing in drawings]
    height = max(column.height for column in columns)
    width = len(columns) * (WIDTH + _GAP) - _GAP
    box = (-_MARGIN, -_MARGIN, width + 2 * _MARGIN, height + 2 * _MARGIN)
    title = "; ".join(dict.fromkeys(_title(drawing) for drawing in drawings))
    description = " ".join(_description(drawing) for drawing in drawings)
    outer = f'viewBox="{" ".join(map(str, box))}" width="{box[2]}" height="{box[3]}"'
    style = f"<style>{STYLE}</style>{paper(*box)}" if styled else ""
    body = "".join(
        f'<g transform="translate({index * (WIDTH + _GAP)} 0)">{column.body}</g>'
        for index, column in enumerate(columns)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="placement" role="img" {outer} '
        f"aria-label={quoteattr(title)}>"
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{style}{body}</svg>"
    )


class _Column:
    """The lines and bars of one placement, from top to bottom.

    Attributes:
        body: The elements so far.
        height: Their height.
    """

    def __init__(self, drawing: Drawing) -> None:
        self.body, self.height = "", 4
        placement = drawing.placement
        if drawing.heading:
            self._text(drawing.heading, "strong")
        self._text(_title(drawing), "strong")
        if drawing.estimate is not None:
            self._text(describe_estimate(drawing.estimate), "soft")
        self._text(f"Weights: {format_bytes(placement.weights)}", "head")
        self._bar(_weights_by_tier(placement), placement.weights)
        self._parts(placement)
        for tier in placement.tiers:
            if tier.planned:
                self._text(_fullness(tier), "head")
                self._bar(_kinds(tier), tier.planned if tier.budget is None else tier.budget)
        for sentence in _sentences(placement):
            self._text(sentence, "soft")
        self.height += 8

    def _text(self, text: str, kind: str) -> None:
        self.height += 12 if kind == "head" else 2
        for part in textwrap.wrap(text, _CHARACTERS):
            self.height += 18
            self.body += line(part, self.height - 4, kind)

    def _bar(self, segments: Sequence[Segment], total: int) -> None:
        self.body += bar(segments, total, self.height + 2)
        self.height += 24
        drawn, height = legend(segments, self.height)
        self.body += drawn
        self.height += height

    def _parts(self, placement: Placement) -> None:
        """Draw the parts of the model in its order, each in the colour of its tier."""
        parts = [
            (f"tier-{_colour(str(device))}", f"{name or 'the model'}: {title_of(str(device))}")
            for name, device in placement.device_map.items()
        ]
        if 1 < len(parts) <= _MOST_CELLS:
            self._text("Its parts in order, in the colours of their tiers", "soft")
            drawn, height = cells(parts, self.height + 2)
            self.body += drawn
            self.height += height + 2


def _colour(tier: str) -> str:
    """Return the name of a tier's colour; GPUs share two, which alternate."""
    return f"gpu{int(tier) % 2}" if tier.isdigit() else tier


def _weights_by_tier(placement: Placement) -> list[Segment]:
    uses = _uses(placement)
    return [
        Segment(
            f"tier-{_colour(tier.name)}",
            f"{title_of(tier.name)}{uses.get(tier.name, '')}",
            tier.weights,
        )
        for tier in placement.tiers
        if tier.weights
    ]


def _uses(placement: Placement) -> dict[str, str]:
    """Return what is done with the weights of tiers that do not execute them."""
    if placement.experts:
        return {"disk": ", read as tokens are routed"}
    uses = {"disk": ", streamed"}
    return uses if placement.execution_device == "cpu" else {**uses, "cpu": ", streamed"}


def _kinds(tier: Tier) -> list[Segment]:
    sizes = [(kind, name, getattr(tier, kind)) for kind, name in _KINDS.items()]
    return [Segment(f"kind-{kind}", name, size) for kind, name, size in sizes if size]


def _fullness(tier: Tier) -> str:
    planned = f"{title_of(tier.name)}: {format_bytes(tier.planned)}"
    if tier.budget is None:
        return f"{planned}, read in place"
    share = f" ({100 * tier.planned / tier.budget:.0f} %)" if tier.budget else ""
    return f"{planned} of {format_bytes(tier.budget)}{share}"


def _sentences(placement: Placement) -> list[str]:
    return [
        f"Executes offloaded parts on: {title_of(str(placement.execution_device))}",
        *([f"Experts: {describe_experts(placement)}"] if placement.experts else []),
        f"{describe_cache(placement)}; longest sequence: {placement.max_model_len} tokens",
        f"Limited by {placement.limited_by}",
    ]


def _title(drawing: Drawing) -> str:
    placement = drawing.placement
    dtype = describe_dtype(placement.dtype, placement.quantization)
    return f"Placement of {placement.architecture} in {dtype}"


def _description(drawing: Drawing) -> str:
    """Return everything that the bars show, as sentences."""
    placement = drawing.placement
    parts = [
        f"{_fullness(tier)}: "
        + ", ".join(f"{kind.name} {format_bytes(kind.size)}" for kind in _kinds(tier))
        for tier in placement.tiers
        if tier.planned
    ]
    estimate = [] if drawing.estimate is None else [describe_estimate(drawing.estimate)]
    heading = [drawing.heading] if drawing.heading else []
    return ". ".join(itertools.chain(heading, parts, _sentences(placement), estimate)) + "."
