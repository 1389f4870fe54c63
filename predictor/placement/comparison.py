"""Show several resources for one model side by side: as a table, as JSON and as a web page.

A web page is one file that loads nothing, so that it can be attached to a ticket.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from predictor.placement.estimate import TOKENS, Bandwidths
from predictor.placement.picture import Drawing, draw
from predictor.placement.picture_shapes import STYLE
from predictor.placement.report import (
    aligned_lines,
    as_json,
    describe_bandwidths,
    format_rate,
)
from predictor.quantity import format_bytes

_COLUMNS = (
    "resources",
    "on GPUs",
    "in memory",
    "on disk",
    "streamed",
    "KV tokens",
)

_PAGE_STYLE = (
    ":root{color-scheme:light dark}"
    "body{margin:2rem auto;padding:0 1rem;max-width:72rem;font:1rem/1.5 system-ui,sans-serif}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "div{overflow-x:auto}"
    "th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #8888}"
    "th:first-child,td:first-child{text-align:left}"
    "section{display:flex;flex-wrap:wrap;align-items:flex-start;gap:2rem}"
)


@dataclass(frozen=True, slots=True)
class Alternative:
    """One choice of resources, and what a model is on them.

    Attributes:
        resources: The resources, as the user states them.
        drawing: The placement and its estimated rates; None if the model does not fit.
        refusal: Why the model does not fit, in one sentence; empty if it does.
    """

    resources: str
    drawing: Drawing | None = None
    refusal: str = ""


def table(alternatives: Sequence[Alternative], bandwidths: Bandwidths) -> str:
    """Return the alternatives as a table with a line each, and what its rates rest on."""
    lines = aligned_lines([_columns(alternatives), *(_row(one) for one in alternatives)])
    return "\n".join([*lines, *_refusals(alternatives), _caveat(bandwidths)])


def comparison_json(alternatives: Sequence[Alternative]) -> dict[str, Any]:
    """Return the alternatives as JSON values; sizes are bytes."""
    return {"alternatives": [_alternative_json(one) for one in alternatives]}


def comparison_page(alternatives: Sequence[Alternative], bandwidths: Bandwidths) -> str:
    """Return the alternatives as an HTML document: a table, and a picture of each."""
    drawings = [one.drawing for one in alternatives if one.drawing is not None]
    rows = [_columns(alternatives), *(_row(one) for one in alternatives)]
    return _document(drawings, [*_refusals(alternatives), _caveat(bandwidths)], rows)


def placement_page(drawing: Drawing, bandwidths: Bandwidths) -> str:
    """Return one placement as an HTML document."""
    return _document([drawing], [_caveat(bandwidths)])


def _document(
    drawings: Sequence[Drawing], sentences: Sequence[str], rows: Sequence[Sequence[str]] = ()
) -> str:
    names = dict.fromkeys(drawing.placement.architecture for drawing in drawings)
    title = " ".join(["Placement of", *names]) if names else "Placement"
    pictures = "".join(draw([drawing], styled=False) for drawing in drawings)
    notes = dict.fromkeys(note for drawing in drawings for note in drawing.placement.notes)
    paragraphs = "".join(f"<p>{escape(text)}</p>\n" for text in (*sentences, *notes))
    style = _PAGE_STYLE + STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; style-src 'sha256-{digest}'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{_html_table(rows)}<section>\n{pictures}</section>\n"
        f"{paragraphs}</body>\n</html>"
    )


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    columns, *lines = rows
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>\n" for line in lines
    )
    return f"<div><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"


def _columns(alternatives: Sequence[Alternative]) -> tuple[str, ...]:
    estimates = [one.drawing.estimate for one in alternatives if one.drawing is not None]
    unit = next((estimate.unit for estimate in estimates if estimate is not None), TOKENS)
    return (*_COLUMNS, f"{unit}, 1 request", f"{unit}, full batch")


def _row(one: Alternative) -> tuple[str, ...]:
    if one.drawing is None:
        return (one.resources, "does not fit", *["-"] * len(_COLUMNS))
    placement, estimate = one.drawing.placement, one.drawing.estimate
    on_gpus = sum(tier.weights for tier in placement.tiers if tier.name.isdigit())
    in_memory, on_disk = placement.tier("cpu").weights, placement.tier("disk").weights
    streamed = on_disk + (0 if placement.execution_device == "cpu" else in_memory)
    rates = ["-", "-"]
    if estimate is not None:
        full = estimate.full
        rates = [format_rate(estimate.single), f"{format_rate(full)} ({full.rows})"]
    return (
        one.resources,
        *(format_bytes(size) for size in (on_gpus, in_memory, on_disk)),
        f"{100 * streamed / placement.weights:.0f} %" if placement.weights else "-",
        str(placement.kv_tokens),
        *rates,
    )


def _refusals(alternatives: Sequence[Alternative]) -> list[str]:
    return [f"{one.resources}: {one.refusal}" for one in alternatives if one.refusal]


def _caveat(bandwidths: Bandwidths) -> str:
    return (
        "The rates are an estimate and no measurement: bytes of a forward pass divided by "
        f"bandwidths, {describe_bandwidths(bandwidths)}."
    )


def _alternative_json(one: Alternative) -> dict[str, Any]:
    drawing = one.drawing
    estimate = None if drawing is None else drawing.estimate
    return {
        "resources": one.resources,
        "placement": None if drawing is None else as_json(drawing.placement),
        "estimate": None if estimate is None else estimate.as_json(),
        "refusal": one.refusal or None,
    }
