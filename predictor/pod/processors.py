"""How many processors this process may keep busy.

torch starts a thread for every processor that it sees, which in a container is every one of the
host; with a CPU limit they then stop each other, and the server's own thread with them.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from predictor.pod.cgroup import processor_quota


def read_processors(*, cgroup_root: Path, proc: Path) -> int:
    """Returns the processors that this process may run on, no more than its CPU limit pays for.

    A limit of 1.5 makes 2: the last one is used half the time.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = processor_quota(cgroup_root=cgroup_root, proc=proc)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))
