"""The pages that the rows of a forward pass read in one layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from predictor.engine.generation.layout import Layout, RowPages


@dataclass(slots=True)
class Source:
    """The keys or the values of one layer, and the rows of a forward pass over it.

    Attributes:
        pool: Those of all pages, of shape (heads, pages, size).
        layout: The rows.
        window: The window of the layer, see `Layout.past_within`.
    """

    pool: torch.Tensor
    layout: Layout
    window: int
    _rows: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of whole rows: (rows, heads, columns, size)."""
        heads, _, size = self.pool.shape
        columns = self.layout.past_within(self.window) + self.layout.new
        return len(self.layout.lengths), heads, columns, size

    def row_pages(self) -> tuple[RowPages, ...]:
        """Return the pages of each row, without padding."""
        return self.layout.row_pages(self.window)

    def gathered(self) -> torch.Tensor:
        """Return whole rows."""
        if self._rows is None:
            self.layout.note_gathered(self.pool)
            gather = self.layout.gather(self.pool.device, self.window)
            rows = self.pool.index_select(1, gather.flatten())
            heads, _, size = rows.shape
            self._rows = rows.view(heads, *gather.shape, size).transpose(0, 1)
        return self._rows
