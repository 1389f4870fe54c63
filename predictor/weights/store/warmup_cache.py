"""What an earlier start of the same model found out by running it, kept on the offload volume.

Each pass over an offloaded model takes seconds, or minutes, so a start does not repeat what cannot
have changed: the same weights, code and device answer the same way. It is lost with the volume, and
then found out again.
"""

from __future__ import annotations

import json
import logging
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch

import predictor

logger = logging.getLogger(__name__)


class WarmupCache:
    """Facts by name; none where nothing is kept or where it was found out under other versions."""

    def __init__(self, file: Path | None, **under: object) -> None:
        """Takes the place; it is read at the first question, when torch's threads are settled.

        Args:
            file: Where it is kept; None keeps nothing.
            under: What facts depend on besides the weights and versions of code, as JSON.
        """
        self._file = file
        self._given = under

    def get(self, name: str) -> int | None:
        """Returns a fact."""
        return self._facts.get(name)

    @cached_property
    def _under(self) -> dict[str, object]:
        return _conditions() | self._given

    @cached_property
    def _facts(self) -> dict[str, int]:
        if self._file is None:
            return {}
        try:
            kept = json.loads(self._file.read_bytes())
            if kept["under"] != self._under:
                return {}
            return {str(name): int(fact) for name, fact in kept["facts"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            logger.info("%s cannot be read; what it knew is found out again", self._file)
            return {}

    def keep(self, **facts: int) -> None:
        """Keeps facts, where they can be kept."""
        self._facts.update(facts)
        if self._file is None:
            return
        partial = self._file.with_name(f"{self._file.name}.partial")
        try:
            partial.write_text(json.dumps({"under": self._under, "facts": self._facts}))
            partial.rename(self._file)
        except OSError as error:
            logger.info("%s cannot be written: %s", self._file, error.strerror)


def _conditions() -> dict[str, object]:
    """All that could change what a model does, besides its weights."""
    return {
        "predictor": predictor.__version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "accelerate": version("accelerate"),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": str(torch.get_num_threads()),
    }
