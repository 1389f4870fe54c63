"""A fault in a served process: its direct reads of blocks wait until a file exists."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

_BLOCK = 2**17
"""Bytes from which a read is of blocks. What a small BLOOM has beside them is less."""


def install(file: str) -> None:
    """Put the fault into this process, the server's."""
    preadv = os.preadv

    def held(descriptor: int, buffers: Any, *offset: int) -> int:
        while sum(map(len, buffers)) >= _BLOCK and not Path(file).exists():
            time.sleep(0.02)
        return preadv(descriptor, buffers, *offset)

    os.preadv = held
