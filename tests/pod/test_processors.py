"""The CPU limit, in a real control group and in layouts that this kernel lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from predictor.pod.cgroup import processor_quota
from predictor.pod.processors import read_processors
from tests.skips import skip_or_fail

HERE = len(os.sched_getaffinity(0))


def tree(root: Path, files: dict[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return {"cgroup_root": root / "cgroup", "proc": root / "proc"}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "cgroup/a/b/cpu.max": "max 100000\n",
                "cgroup/a/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/host/path\n0::/\n",
                "cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_a_quota_is_read_in_every_layout(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert processor_quota(**tree(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("maximum", "processors"),
    [("10000 100000", 1), ("100000 100000", 1), (f"{HERE}00000 100000", HERE), ("max 1", HERE)],
)
def test_processors_are_a_quota_rounded_up_and_no_more_than_there_are(
    tmp_path: Path, maximum: str, processors: int
) -> None:
    roots = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": maximum})
    assert read_processors(**roots) == processors


@pytest.mark.root
def test_a_real_limit_of_half_a_processor_is_one_thread() -> None:
    first = Path("/sys/fs/cgroup/cpu")
    mount, limit, half = (
        (first, "cpu.cfs_quota_us", "50000")
        if first.is_dir()
        else (first.parent, "cpu.max", "50000 100000")
    )
    group = mount / f"predictor-test-{uuid.uuid4().hex[:8]}"
    try:
        if limit == "cpu.max":
            (mount / "cgroup.subtree_control").write_text("+cpu")
        group.mkdir()
    except OSError as error:
        skip_or_fail(
            f"no control group with a CPU limit can be made here: {error}", "REQUIRE_ROOT_TESTS"
        )
    code = (
        "from pathlib import Path\n"
        "from predictor.pod.processors import read_processors\n"
        "print(read_processors(cgroup_root=Path('/sys/fs/cgroup'), proc=Path('/proc')))"
    )
    try:
        (group / limit).write_text(half)
        done = subprocess.run(
            ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
            + [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        group.rmdir()
    assert done.stdout.strip() == "1"
