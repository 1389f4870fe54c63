"""The bandwidth of main memory for reading, and the name of the processor."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_BYTES, _PASSES = 2**29, 4
_UNITS = ("avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
"""Instructions that decide how fast a linear layer is computed, as Linux names them."""


def read_bandwidth() -> float:
    """Return the bytes per second that all processors together read from main memory.

    The best of a few passes over far more than caches hold, by two kinds of loops.
    """
    count = os.cpu_count() or 1
    parts = np.array_split(np.ones(_BYTES // 4, dtype=np.float32), count)
    best = 0.0
    with ThreadPoolExecutor(count) as pool:
        for _ in range(_PASSES):
            for work in (_largest, _product):
                began = time.perf_counter()
                list(pool.map(work, parts))
                best = max(best, _BYTES / (time.perf_counter() - began))
    return best


def _largest(part: np.ndarray) -> float:
    return float(part.max())


def _product(part: np.ndarray) -> float:
    return float(np.dot(part, part))


def processor() -> str:
    """Return the processor's name and its instructions for matrices."""
    text = Path("/proc/cpuinfo").read_text()
    names = dict(re.findall(r"^(.+?)\s*: (.*)$", text, re.MULTILINE))
    flags = set(names.get("flags", "").split())
    units = [unit for unit in _UNITS if unit in flags]
    name = names.get("model name", "unknown processor")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    restricted = f", oneDNN restricted to {limit}" if limit else ""
    family = f"family {names.get('cpu family')}, model {names.get('model')}"
    return f"{name} ({family}) with {', '.join(units) or 'no AVX-512'}{restricted}"
