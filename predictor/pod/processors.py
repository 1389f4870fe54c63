"""The number of processors that this process may keep busy.

torch starts a thread for every processor that it sees, which in a container are all of the host.
With a CPU limit these threads would be throttled, and the server's own thread with them.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from predictor.pod.cgroup import processor_quota


def read_processors(*, cgroup_root: Path, proc: Path) -> int:
    """Return the number of processors that this process may run on, capped at its CPU limit.

    A limit of 1.5 counts as 2: the last processor is used half the time.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = processor_quota(cgroup_root=cgroup_root, proc=proc)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))
