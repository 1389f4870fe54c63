"""A gate in a served model: while it is closed no pass over the weights begins.

So a request runs for as long as a test wants it to, however fast the model and the machine are.
"""

from __future__ import annotations

import fcntl
import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self


def install(file: str) -> None:
    """Put the gate into every BLOOM of this process, the server's."""
    from transformers import BloomForCausalLM

    passes = BloomForCausalLM.forward

    @functools.wraps(passes)
    def forward(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        if input_ids is not None and not input_ids.is_meta:
            with open(file, "ab", buffering=0) as gate:
                gate.write(b"|")
                fcntl.flock(gate, fcntl.LOCK_SH)  # waits while the test has it for itself
        return passes(self, input_ids, **kwargs)

    BloomForCausalLM.forward = forward


class Gate:
    """The test's side of the gate, which is open at first and in the end."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("ab")
        self._begun = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def close(self) -> None:
        """Let no further pass begin."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._begun = self._passes()

    def open(self) -> None:
        """Let all passes begin."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def await_pass(self, seconds: float = 20) -> None:
        """Wait until a pass is held at the closed gate."""
        deadline = time.monotonic() + seconds
        while self._passes() == self._begun:
            assert time.monotonic() < deadline, "no pass is held at the gate"
            time.sleep(0.01)

    def _passes(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Keep the gate closed for the block."""
        self.close()
        try:
            yield
        finally:
            self.open()
