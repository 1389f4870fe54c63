"""The wire: bytes become typed requests, typed completions become bytes.

Importing any module of this package imports kserve first, with ``sys.argv`` hidden: kserve parses
``sys.argv`` when it is imported (``kserve/model_server.py``, ``parser.parse_known_args()``) and
takes abbreviations for its own flags, so ``--model x`` becomes ``--model_name x`` and ``--max 1``
ends the process with exit code 2. That would happen to our command's flags and to pytest's alike.
Python runs this file before any module below it, so doing it here is enough.
"""

from __future__ import annotations

import sys


def _import_kserve_without_arguments() -> None:
    arguments = sys.argv
    sys.argv = arguments[:1] or ["predictor"]
    try:
        from predictor.protocol import sdk  # noqa: F401 - checks kserve before it is used
    finally:
        sys.argv = arguments


_import_kserve_without_arguments()
