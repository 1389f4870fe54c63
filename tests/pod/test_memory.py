"""Real control groups of this kernel, then made-up trees for the layouts that it lacks."""

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predictor.errors import ConfigurationError
from predictor.pod.memory import PROC, read_memory, read_own_anonymous
from predictor.pod.mounts import mount_of, read_mounts
from predictor.pod.resources import Memory
from tests.pod.conftest import GIB, MIB, Host
from tests.skips import skip_or_fail

NO_LIMIT_V1 = 9223372036854771712

# Takes page cache, anonymous and shared memory in turn; prints what is available after each.
TAKING = """
import dataclasses, json, mmap, os, sys
from pathlib import Path
from predictor.pod.memory import read_memory
from tests.skips import skip_or_fail
folder, amount = Path(sys.argv[1]), int(sys.argv[2])
report = lambda: print(json.dumps(dataclasses.asdict(read_memory())), flush=True)
report()
with open(folder / "cached", "wb") as file:
    file.write(os.urandom(amount)); file.flush(); os.fsync(file.fileno())
(folder / "cached").read_bytes()
report(); input()
held = bytearray(b"x") * amount
report()
shared = mmap.mmap(-1, amount); shared.write(b"x" * amount)
del held
report()
"""


def _read(host: Host):
    return read_memory(cgroup_root=host.cgroup_root, proc=host.proc)


def _inside(group, code, *args, **options):
    command = group.command([sys.executable, "-c", code, *map(str, args)])
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60, **options
    ).stdout


SAYING = "from predictor.pod.memory import read_memory as r; m = r(); print(m.limit, m.available)"


@pytest.mark.root
def test_in_a_real_cgroup_page_cache_is_free_but_anonymous_and_shared_memory_is_not(
    memory_cgroup, tmp_path
):
    if mount_of(tmp_path.resolve(), read_mounts(PROC)).filesystem == "tmpfs":
        pytest.skip("the temporary folder is in memory: its files are no page cache")
    group = memory_cgroup(512 * MIB)
    amount = 64 * MIB
    command = group.command([sys.executable, "-c", TAKING, str(tmp_path), str(amount)])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        start, cached = (json.loads(process.stdout.readline()) for _ in range(2))
        usage = group.usage()
        rest, _ = process.communicate("\n", timeout=60)
    held, shared = map(json.loads, rest.splitlines())
    assert process.returncode == 0
    assert start["limit"] == 512 * MIB
    assert "host" not in start["source"]
    assert start["available"] < 512 * MIB
    assert usage > amount  # the page cache really is charged to the group
    assert abs(cached["available"] - start["available"]) < amount / 4
    assert start["available"] - held["available"] > amount * 3 / 4
    assert start["available"] - shared["available"] > amount * 3 / 4
    assert group.oom_kills() == 0


@pytest.mark.root
def test_in_real_nested_cgroups_the_tighter_parent_counts(memory_cgroup):
    parent = memory_cgroup(128 * MIB)
    child = memory_cgroup(100 * GIB, parent)
    limit, available = map(int, _inside(child, SAYING).split())
    assert limit == 128 * MIB
    assert 64 * MIB < available < 128 * MIB


# What a container runtime does: the group's own folder is mounted over the controller's, with or
# without a cgroup namespace. The process then goes to a group below it, or stays (".").
BOUND = 'mount --bind "$0" "$1" && echo $$ > "$1/$2/cgroup.procs" && shift 2 && exec "$@"'


@pytest.mark.root
@pytest.mark.parametrize("namespaces", ["-m", "-mC"])
@pytest.mark.parametrize("below", [True, False])
def test_in_a_real_containers_mounts_its_own_group_is_found(memory_cgroup, namespaces, below):
    container = memory_cgroup(256 * MIB, memory_cgroup(512 * MIB))
    inner = memory_cgroup(128 * MIB, container)
    point = mount_of(container.folder, read_mounts(PROC)).point
    place = inner.folder.name if below else "."
    shell = ["sh", "-c", BOUND, str(container.folder), str(point), place]
    command = container.command(["unshare", namespaces, *shell, sys.executable, "-c", SAYING])
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr or "mount" in done.stderr:
        skip_or_fail(
            f"no mount namespace can be made here: {done.stderr.strip()}", "REQUIRE_ROOT_TESTS"
        )
    assert done.returncode == 0, done.stderr
    limit, available = map(int, done.stdout.split())
    assert limit == (128 * MIB if below else 256 * MIB)
    assert limit / 2 < available < limit


@pytest.mark.root
def test_the_available_memory_of_a_real_cgroup_can_be_taken_and_no_more(memory_cgroup):
    group = memory_cgroup(256 * MIB)
    taking = (
        "import sys; from predictor.pod.memory import read_memory\n"
        "held = bytearray(b'x') * (read_memory().available + int(sys.argv[1]))"
    )
    _inside(group, taking, -16 * MIB)
    assert group.oom_kills() == 0
    with pytest.raises(subprocess.CalledProcessError):
        _inside(group, taking, 16 * MIB)
    assert group.oom_kills() == 1


def test_without_any_limit_the_hosts_available_memory_counts(host):
    host.belongs_to("0::/user.slice/session")
    host.v2("user.slice/session", "max", 5 * GIB)
    assert _read(host) == Memory(limit=None, available=64 * GIB, source="host")


def test_version_2_takes_back_file_cache_and_slab_but_not_shared_memory(host):
    host.belongs_to("0::/")
    host.v2(
        "",
        10 * GIB,
        9 * GIB,
        file=8 * GIB,
        shmem=2 * GIB,
        inactive_file=4 * GIB,
        active_file=2 * GIB,
        slab_reclaimable=GIB,
        inactive_anon=2 * GIB,
    )
    memory = _read(host)
    assert memory.limit == 10 * GIB
    assert memory.available == 8 * GIB  # 10 - (9 - 4 - 2 - 1)
    assert memory.source == "cgroup v2 memory.max"


def test_version_2_takes_the_least_headroom_of_the_group_and_those_above(host):
    host.belongs_to("0::/kubepods/pod1/main")
    host.v2("kubepods/pod1/main", 10 * GIB, 1 * GIB)
    host.v2("kubepods/pod1", 12 * GIB, 8 * GIB)  # a sidecar has taken 7 GiB
    host.v2("kubepods", "max", 50 * GIB)
    memory = _read(host)
    assert (memory.limit, memory.available) == (10 * GIB, 4 * GIB)


def test_version_2_without_the_controller_in_the_own_group_reads_the_one_above(host):
    host.belongs_to("0::/outer/inner")
    host.v2("outer", 2 * GIB, GIB)
    (host.cgroup_root / "outer/inner").mkdir()
    assert _read(host).available == GIB


def test_memory_high_below_memory_max_is_the_limit(host):
    host.belongs_to("0::/")
    host.v2("", 10 * GIB, 0)
    host.write("cgroup/memory.high", 8 * GIB)
    memory = _read(host)
    assert (memory.limit, memory.source) == (8 * GIB, "cgroup v2 memory.high")


def test_version_1_in_a_container_shows_the_hosts_path_and_the_mount_is_the_own_group(host):
    host.belongs_to("4:memory:/kubepods/burstable/pod1/0123abc", "1:name=systemd:/x", "0::/x")
    host.v1("", 256 * MIB, 200 * MIB, total_inactive_file=90 * MIB, total_active_file=10 * MIB)
    memory = _read(host)
    assert (memory.limit, memory.available) == (256 * MIB, 156 * MIB)
    assert memory.source == "cgroup v1 memory.limit_in_bytes"


def test_version_1_in_a_container_finds_its_own_group_below_the_mounted_one(host):
    host.belongs_to("4:memory:/kubepods/pod1/0123abc/worker")
    host.mounts("35 31 0:32 /kubepods/pod1/0123abc {}/cgroup/memory ro - cgroup cgroup rw,memory")
    host.v1("", 4 * GIB, GIB)
    host.v1("worker", GIB, 0)
    assert _read(host).limit == GIB


def test_version_1_with_an_unknown_root_takes_the_longest_tail_of_the_path_that_exists(host):
    host.belongs_to("4:memory:/kubepods/pod1/0123abc/worker")
    host.v1("", NO_LIMIT_V1, GIB)
    host.v1("0123abc/worker", 2 * GIB, 0)
    host.v1("worker", GIB, 0)
    assert _read(host).limit == 2 * GIB


def test_a_path_that_ends_outside_the_mount_takes_its_longest_head(host):
    host.belongs_to("0::/outer/gone")
    host.v2("outer", 3 * GIB, 0)
    assert _read(host).limit == 3 * GIB


def test_a_path_above_the_cgroup_namespace_leads_to_the_mounts_own_group(host):
    host.belongs_to("0::/../other")
    host.v2("", 3 * GIB, 0)
    host.write("other/memory.max", 1)
    host.write("other/memory.current", 1)
    assert _read(host).limit == 3 * GIB


def test_version_1_counts_the_page_cache_of_groups_below_too(host):
    host.belongs_to("9:cpu,memory:/")
    host.v1("", GIB, GIB, inactive_file=0, total_inactive_file=512 * MIB)
    assert _read(host).available == 512 * MIB


def test_version_1_knows_a_limit_of_an_ancestor_that_the_mount_does_not_show(host):
    host.belongs_to("4:memory:/pod1/0123abc")
    host.v1("", NO_LIMIT_V1, GIB, hierarchical_memory_limit=3 * GIB)
    memory = _read(host)
    assert (memory.limit, memory.available) == (3 * GIB, 2 * GIB)


@pytest.mark.parametrize("no_limit", [NO_LIMIT_V1, 2**63 - 65536, 2**63 - 1])
def test_the_values_that_mean_no_limit_in_version_1_are_none(host, no_limit):
    host.belongs_to("4:memory:/")
    host.v1("", no_limit, GIB, hierarchical_memory_limit=no_limit)
    assert _read(host).limit is None


def test_in_the_hybrid_layout_the_line_of_version_2_is_not_followed(host):
    host.belongs_to("4:memory:/app", "0::/app")
    host.mounts(
        "31 23 0:28 / {}/cgroup rw - tmpfs tmpfs rw,mode=755",
        "35 31 0:32 / {}/cgroup/memory rw - cgroup cgroup rw,memory",
        "41 31 0:38 / {}/cgroup/unified rw - cgroup2 cgroup2 rw",
    )
    host.v1("app", GIB, 0)
    host.write("cgroup/unified/app/memory.max", 1)
    host.write("cgroup/unified/app/memory.current", 1)
    assert _read(host).limit == GIB


def test_a_mount_hidden_by_a_later_one_on_the_same_place_is_not_taken(host):
    host.belongs_to("4:memory:/pod1/0123abc/app")
    host.mounts(
        "35 31 0:32 / {}/cgroup/memory rw - cgroup cgroup rw,memory",
        "36 35 0:32 /pod1/0123abc {}/cgroup/memory rw - cgroup cgroup rw,memory",
    )
    host.v1("app", GIB, 0)
    host.v1("0123abc/app", 2 * GIB, 0)  # another's, which only its name makes look like ours
    assert _read(host).limit == GIB


def test_control_groups_mounted_at_an_unusual_place_are_found_by_mountinfo(host):
    host.belongs_to("0::/app")
    host.mounts("41 31 0:38 / {}/my\\040groups rw - cgroup2 cgroup2 rw,nsdelegate")
    host.write("my groups/app/memory.max", GIB)
    host.write("my groups/app/memory.current", 0)
    assert _read(host).limit == GIB


def test_without_proc_self_cgroup_the_default_mount_is_read(host):
    host.v1("", GIB, 0)
    assert _read(host).limit == GIB


def test_the_host_counts_where_it_has_less_than_the_limit_leaves(host):
    host.available(3 * GIB)
    host.belongs_to("0::/")
    host.v2("", 10 * GIB, 0)
    memory = _read(host)
    assert (memory.limit, memory.available) == (10 * GIB, 3 * GIB)
    assert memory.source == "host (less than cgroup v2 memory.max leaves)"


def test_a_group_above_its_limit_leaves_nothing_rather_than_less(host):
    host.belongs_to("0::/")
    host.v2("", GIB, 2 * GIB)
    assert _read(host).available == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.data())
def test_available_is_never_above_any_levels_headroom_nor_the_host(host, data):
    sizes = st.integers(0, 2**40)
    levels = [(data.draw(sizes), data.draw(sizes), data.draw(sizes)) for _ in range(3)]
    available = data.draw(sizes) // 1024 * 1024
    host.available(available)
    host.belongs_to("0::/a/b")
    for group, (limit, current, cache) in zip(("", "a", "a/b"), levels, strict=True):
        host.v2(group, limit, current, inactive_file=cache)
    headrooms = [max(0, limit - max(0, used - cache)) for limit, used, cache in levels]
    assert _read(host).available == min(available, *headrooms)


def test_a_host_that_does_not_say_what_is_available_is_a_clear_error(host):
    host.write("proc/meminfo", "MemTotal: 1 kB")
    with pytest.raises(ConfigurationError, match=r"has no MemAvailable; the predictor needs Linux"):
        _read(host)
    (host.proc / "meminfo").unlink()
    with pytest.raises(ConfigurationError, match=r"cannot be read .*needs Linux with /proc"):
        _read(host)


def test_this_process_holds_some_anonymous_memory(host):
    assert read_own_anonymous(proc=host.proc) == 100 * MIB
    assert MIB < read_own_anonymous() < 100 * GIB
