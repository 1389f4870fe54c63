"""A fault in a served process's HTTP server: it ends by itself once a file exists."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any


def install(file: str) -> None:
    """Put the fault into uvicorn in this process, the server's."""
    import uvicorn

    async def main_loop(self: Any) -> None:
        while not Path(file).exists():
            await asyncio.sleep(0.02)
        raise RuntimeError("of the HTTP server")

    uvicorn.Server.main_loop = main_loop  # type: ignore[method-assign]
