"""Starts the engine process: ``python -m predictor.engine_start FD``, an end of a socket pair.

The import of the engine is that of torch, transformers and accelerate. If one of them lacks what is
used of it, the process at the other end is told so in place of a traceback.
"""

from __future__ import annotations

import socket
import sys
from typing import NoReturn

from predictor import logs
from predictor.engine.process.channel import Channel
from predictor.engine.process.messages import Failed
from predictor.errors import ConfigurationError
from predictor.private.versions import lacking


def main(connection: socket.socket) -> NoReturn:
    """Be the engine process of the process at the other end of a connection."""
    try:
        # Before torch and transformers: pydantic reads the settings' docstrings by going through
        # all modules, and theirs are thousands.
        from predictor import settings  # noqa: F401
        from predictor import engine_main  # isort: skip
    except ConfigurationError as error:
        _refuse(connection, error)
    except ImportError as error:
        _refuse(connection, lacking(error))
    engine_main.main(connection)


def _refuse(connection: socket.socket, error: ConfigurationError) -> NoReturn:
    channel = Channel(connection)
    channel.receive()  # the settings; it takes no answer before
    channel.send(Failed(error))
    sys.exit(error.exit_code)


if __name__ == "__main__":
    logs.configure()
    logs.quiet()
    main(socket.socket(fileno=int(sys.argv[1])))
