"""The process's log: one line an event, on stderr, never a prompt or a reply.

kserve's loggers write two lines for every request, probes included; they are kept to warnings.
"""

from __future__ import annotations

import logging

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_WARNINGS_ONLY = ("kserve", "kserve.trace", "uvicorn", "uvicorn.error", "uvicorn.access", "httpx")
_ERRORS_ONLY = ("accelerate.big_modeling",)


def configure() -> None:
    """Sets the process's log up."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT)


def quiet() -> None:
    """Keeps the libraries' loggers down; called after kserve set up its own."""
    for name in _WARNINGS_ONLY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _ERRORS_ONLY:
        logging.getLogger(name).setLevel(logging.ERROR)
