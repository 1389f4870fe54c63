"""The process's log: one line for each event, on stderr, never a prompt or a reply.

kserve's loggers write two lines for every request, probes included, and so log warnings only.
"""

from __future__ import annotations

import json
import logging

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_WARNINGS_ONLY = ("kserve", "kserve.trace", "uvicorn", "uvicorn.error", "uvicorn.access")
_CLIENTS = ("httpx", "httpcore", "httpx2", "httpcore2")
"""Their lines below warnings have whole URLs and headers, and so passwords and signatures."""
_ERRORS_ONLY = ("accelerate.big_modeling",)


class JSONFormatter(logging.Formatter):
    """Formats a line as a JSON object: time, level, logger, message, and its fields if it has."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str = "info", *, as_json: bool = False) -> None:
    """Set up the process's log.

    Args:
        level: The least level of lines.
        as_json: Whether a line is a JSON object.
    """
    logging.basicConfig(level=logging.INFO, format=_FORMAT)
    root = logging.getLogger()
    root.setLevel(level.upper())
    for name in _CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING)
    if as_json:
        for handler in root.handlers:
            handler.setFormatter(JSONFormatter())


def quiet() -> None:
    """Raise the levels of libraries' loggers. Call it after kserve has set up its own."""
    for name in _WARNINGS_ONLY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _ERRORS_ONLY:
        logging.getLogger(name).setLevel(logging.ERROR)
