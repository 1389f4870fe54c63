"""Records the answers of all servers to a file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

from tests.recorded.recording import begin, write
from tests.recorded.servers import SERVERS


def main() -> None:
    """Records."""
    parser = argparse.ArgumentParser(prog="python -m tests.recorded", description=__doc__)
    parser.add_argument("file", type=Path, help="where the answers are written")
    parser.add_argument("--server", action="append", choices=SERVERS, help="only this one")
    arguments = parser.parse_args()
    answers = begin(arguments.server or SERVERS)
    everything = {}
    for future in answers.values():
        everything |= future.result()
    write(arguments.file, everything)
    print(f"{len(everything)} answers in {arguments.file}")


main()
