"""Measurements of earlier starts of the same model, kept on the offload volume.

A forward pass over an offloaded model takes seconds or minutes. The same weights, code and device
give the same measurements, so a start does not repeat them. If the volume is lost, the next start
measures again. What is measured is decided in the engines' `warmup` modules.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch

import predictor
from predictor.weights.store.atomic import write_atomically
from predictor.weights.store.served_weights import ServedWeights
from predictor.weights.store.sources import Sources

logger = logging.getLogger(__name__)


class WarmupCache:
    """Numbers by name, valid under the conditions in which they were measured.

    Attributes:
        before_timing: Called before forward passes are timed, so that all that stays in memory is
            there.
    """

    def __init__(
        self,
        file: Path | None,
        weights: ServedWeights | None = None,
        *,
        before_timing: Callable[[], None] = lambda: None,
        **conditions: object,
    ) -> None:
        """Read nothing yet: the conditions include torch's threads, which are set later.

        Args:
            file: The cache's file; None keeps nothing.
            weights: The served weights; None if they lie in no files.
            before_timing: See the attribute.
            conditions: Conditions besides the weights and the versions of code, as JSON values.
        """
        self.before_timing = before_timing
        self._file = file
        self._weights = weights or ServedWeights()
        self._given = conditions

    def get(self, name: str) -> int | None:
        """Return a number; None if it was not measured under these conditions."""
        return self._numbers.get(name)

    @cached_property
    def _conditions(self) -> dict[str, object]:
        return _environment() | self._given

    @cached_property
    def _numbers(self) -> dict[str, int]:
        if self._file is None:
            return {}
        try:
            content = json.loads(self._file.read_bytes())
            sources = Sources.from_json(content["sources"])
            if content["under"] != self._conditions or not self._weights.are_in(sources):
                return {}
            return {str(name): int(number) for name, number in content["facts"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            logger.info("%s cannot be read; its measurements are repeated", self._file)
            return {}

    def keep(self, **numbers: int) -> None:
        """Add numbers, and write the file if there is one."""
        self._numbers.update(numbers)
        if self._file is None:
            return
        content = {
            "sources": self._weights.sources.as_json(),
            "under": self._conditions,
            "facts": self._numbers,
        }
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self._file, json.dumps(content))
        except OSError as error:
            logger.info("%s cannot be written: %s", self._file, error.strerror)


def _environment() -> dict[str, object]:
    """Return the conditions besides the weights that can change a measurement."""
    return {
        "predictor": predictor.__version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "accelerate": version("accelerate"),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "instructions": sorted(
            name for name, has in torch.cpu.get_capabilities().items() if has is True
        ),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": str(torch.get_num_threads()),
    }
