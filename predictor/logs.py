"""The process's log: one line for each event, on stderr, never a prompt or a reply.

kserve's loggers write two lines for every request, probes included, and so log warnings only.
"""

from __future__ import annotations

import logging

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_WARNINGS_ONLY = ("kserve", "kserve.trace", "uvicorn", "uvicorn.error", "uvicorn.access", "httpx")
_ERRORS_ONLY = ("accelerate.big_modeling",)


def configure() -> None:
    """Set up the process's log."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT)


def quiet() -> None:
    """Raise the levels of the libraries' loggers. Call it after kserve has set up its own."""
    for name in _WARNINGS_ONLY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _ERRORS_ONLY:
        logging.getLogger(name).setLevel(logging.ERROR)
