"""The shapes of a picture: bars of segments with legends, rows of cells, and lines of text.

All of them are strings of SVG whose colours are classes of `STYLE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from predictor.quantity import format_bytes

WIDTH = 520
"""Units of width: on a phone the smallest text is still some 8 pixels high."""

_BAR = 18
_LEGEND_LINE = 17
_CHARACTER = 6.4
"""The width of a character of a legend, rounded up: fonts differ."""

_CELLS = 64
_CELL_GAP = 1

_LIGHT = {
    "kind-weights": "#2f6fd0",
    "kind-kv": "#d97706",
    "kind-staging": "#7c4ddb",
    "kind-activations": "#12855f",
    "kind-experts": "#c2366f",
    "tier-gpu0": "#12855f",
    "tier-gpu1": "#57b894",
    "tier-cpu": "#2f6fd0",
    "tier-disk": "#8a8f98",
}
_DARK = {
    "kind-weights": "#6ea4f5",
    "kind-kv": "#f0a441",
    "kind-staging": "#a98bf0",
    "kind-activations": "#45c596",
    "kind-experts": "#f07ba8",
    "tier-gpu0": "#45c596",
    "tier-gpu1": "#1f8a66",
    "tier-cpu": "#6ea4f5",
    "tier-disk": "#9aa1ac",
}


def _colours(fills: dict[str, str], *, ink: str, soft: str, track: str, paper: str) -> str:
    rules = [f".placement .{name}{{fill:{colour}}}" for name, colour in fills.items()]
    return "".join(
        [
            f".placement text{{fill:{ink}}}",
            f".placement .soft,.placement .legend{{fill:{soft}}}",
            f".placement .track{{fill:{track}}}",
            f".placement .paper{{fill:{paper}}}",
            *rules,
        ]
    )


STYLE = (
    ".placement{max-width:100%;height:auto;font:13px system-ui,sans-serif}"
    ".placement .strong,.placement .head{font-weight:600}"
    ".placement .soft,.placement .legend{font-size:12px}"
    + _colours(_LIGHT, ink="#1c2230", soft="#4b5363", track="#e3e7ee", paper="#fff")
    + "@media (prefers-color-scheme:dark){"
    + _colours(_DARK, ink="#eef1f6", soft="#b6bdca", track="#333a47", paper="#12161d")
    + "}"
)
"""The style of pictures, which touches nothing beside them."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar.

    Attributes:
        colour: The class that has its colour.
        name: Its name in the legend.
        size: Its bytes.
    """

    colour: str
    name: str
    size: int

    @property
    def text(self) -> str:
        """Its name and its size."""
        return f"{self.name} {format_bytes(self.size)}"


def paper(x: int, y: int, width: int, height: int) -> str:
    """Return the ground of a picture, which others may show on a ground of any colour."""
    return f'<rect class="paper" x="{x}" y="{y}" width="{width}" height="{height}"/>'


def line(text: str, y: int, kind: str) -> str:
    """Return a line of text with its baseline at `y`."""
    return f'<text class="{kind}" x="0" y="{y}">{escape(text)}</text>'


def bar(segments: Sequence[Segment], total: int, y: int) -> str:
    """Return a bar as wide as the picture, of which the segments fill their shares of `total`."""
    drawn = f'<rect class="track" x="0" y="{y}" width="{WIDTH}" height="{_BAR}" rx="3"/>'
    x = 0.0
    for segment in segments:
        width = min(WIDTH - x, WIDTH * segment.size / total) if total else 0.0
        drawn += (
            f'<rect class="{segment.colour}" x="{x:.2f}" y="{y}" width="{width:.2f}" '
            f'height="{_BAR}"><title>{escape(segment.text)}</title></rect>'
        )
        x += width
    return drawn


def legend(segments: Sequence[Segment], y: int) -> tuple[str, int]:
    """Return the names of segments beside their colours, and how high these lines are."""
    drawn, x, top = "", 0.0, y
    for segment in segments:
        width = 16 + _CHARACTER * len(segment.text)
        if x and x + width > WIDTH:
            x, top = 0.0, top + _LEGEND_LINE
        drawn += (
            f'<rect class="{segment.colour}" x="{x:.1f}" y="{top + 3}" width="10" height="10"/>'
            f'<text class="legend" x="{x + 14:.1f}" y="{top + 12}">{escape(segment.text)}</text>'
        )
        x += width + 12
    return drawn, top + _LEGEND_LINE - y


def cells(parts: Sequence[tuple[str, str]], y: int) -> tuple[str, int]:
    """Return rows of cells with a class and a title each, and how high the rows are."""
    columns = min(_CELLS, len(parts))
    step, height = min(24.0, WIDTH / columns), 10
    drawn = ""
    for index, (colour, title) in enumerate(parts):
        row, column = divmod(index, columns)
        drawn += (
            f'<rect class="{colour}" x="{column * step:.2f}" y="{y + row * (height + 2)}" '
            f'width="{step - _CELL_GAP:.2f}" height="{height}">'
            f"<title>{escape(title)}</title></rect>"
        )
    return drawn, -(-len(parts) // columns) * (height + 2)
