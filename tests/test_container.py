"""Recorded cgroup trees in, limits out; at the end this machine's own cgroups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import devicekit.container
from devicekit.container import Cgroup, MemoryLimit, usable_cpus

GIB = 2**30
V1_UNLIMITED = "9223372036854771712\n"

V2_MOUNT = "32 24 0:28 / /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n"
V1_MOUNTS = (
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
)
DOCKER_V1_MOUNTS = (
    "61 60 0:32 /docker/ab /sys/fs/cgroup/memory ro,nosuid master:17 - cgroup cgroup rw,memory\n"
    "62 60 0:33 /docker/ab /sys/fs/cgroup/cpu,cpuacct ro master:11 - cgroup cgroup rw,cpu,cpuacct\n"
)

Files = dict[str, str]

linux_names = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux allows such names, and only it has cgroups"
)


def plant(root: Path, files: dict[str, str] | dict[str, bytes]) -> Path:
    """Write ``files`` (path below ``root`` to text) and hand back ``root``."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
    return root


def under(directory: str, files: Files) -> Files:
    return {f"{directory}/{name}": text for name, text in files.items()}


def proc(cgroup: str, mountinfo: str) -> Files:
    return {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo}


def v2(limit: object, usage: int = 0, inactive: int = 0, high: object = "max") -> Files:
    return {
        "memory.max": f"{limit}\n",
        "memory.high": f"{high}\n",
        "memory.current": f"{usage}\n",
        "memory.stat": f"anon 4096\nfile 8192\ninactive_anon 7\ninactive_file {inactive}\n",
    }


def v1(limit: object, usage: int = 0, inactive: int = 0, hierarchical: int = 2**63 - 4096) -> Files:
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{usage}\n",
        "memory.stat": f"cache 1\ninactive_file 3\nhierarchical_memory_limit {hierarchical}\n"
        f"total_cache 1\ntotal_inactive_file {inactive}\ntotal_active_file 5\n",
    }


def docker_v2(files: Files) -> Files:
    return proc("0::/\n", V2_MOUNT) | under("sys/fs/cgroup", files)


# --- memory, v2 ---


def test_docker_v2_reads_the_limit_at_the_mount_root(tmp_path: Path) -> None:
    """In a cgroup namespace the path is ``/`` and the limit stands at the mount root."""
    root = plant(tmp_path, docker_v2(v2(2 * GIB, usage=GIB)))
    found = Cgroup(root).memory_limit()
    assert found == MemoryLimit(2 * GIB, GIB, "cgroup v2 memory.max of /")
    assert found.available == GIB


def test_inactive_file_is_not_counted_as_used(tmp_path: Path) -> None:
    """Page cache that the kernel reclaims first is room, not use."""
    root = plant(tmp_path, docker_v2(v2(2 * GIB, usage=GIB, inactive=GIB // 4)))
    found = Cgroup(root).memory_limit()
    assert found is not None
    assert found.used == GIB - GIB // 4


def test_inactive_file_may_be_the_first_line_of_stat(tmp_path: Path) -> None:
    """The order of the lines in memory.stat is not promised."""
    files = v2(2 * GIB, usage=GIB) | {"memory.stat": f"inactive_file {GIB}\ninactive_anon 5\n"}
    found = Cgroup(plant(tmp_path, docker_v2(files))).memory_limit()
    assert found is not None
    assert found.used == 0


def test_more_inactive_file_than_usage_is_no_use(tmp_path: Path) -> None:
    """The two files are read one after the other, so use is never below 0."""
    root = plant(tmp_path, docker_v2(v2(2 * GIB, usage=10, inactive=GIB)))
    found = Cgroup(root).memory_limit()
    assert found is not None
    assert (found.used, found.available) == (0, 2 * GIB)


def test_usage_above_the_limit_leaves_nothing(tmp_path: Path) -> None:
    """A limit that was lowered below the usage leaves 0 bytes, not a negative number."""
    root = plant(tmp_path, docker_v2(v2(GIB, usage=2 * GIB)))
    found = Cgroup(root).memory_limit()
    assert found is not None
    assert (found.used, found.available) == (GIB, 0)


def test_missing_stat_subtracts_nothing(tmp_path: Path) -> None:
    """Without memory.stat the whole usage counts, which is the careful side."""
    files = v2(2 * GIB, usage=GIB)
    del files["memory.stat"]
    found = Cgroup(plant(tmp_path, docker_v2(files))).memory_limit()
    assert found is not None
    assert found.used == GIB


@pytest.mark.parametrize("word", ["max", V1_UNLIMITED.strip(), str(2**60), str(2**64), "", "-1"])
def test_unlimited_words_are_no_limit(tmp_path: Path, word: str) -> None:
    """``max``, v1's page-rounded 2**63-1, anything from 2**60 on and non-numbers are no limit."""
    assert Cgroup(plant(tmp_path, docker_v2(v2(word)))).memory_limit() is None


def test_a_limit_of_physical_memory_or_more_is_none(tmp_path: Path) -> None:
    """A limit that the machine's own memory meets first is no limit."""
    cgroup = Cgroup(plant(tmp_path, docker_v2(v2(2 * GIB))))
    assert cgroup.memory_limit(physical=2 * GIB) is None
    assert cgroup.memory_limit(physical=2 * GIB + 1) is not None


def test_a_zero_limit_is_a_limit(tmp_path: Path) -> None:
    """0 is a number like any other, not "no limit"."""
    found = Cgroup(plant(tmp_path, docker_v2(v2(0)))).memory_limit()
    assert found == MemoryLimit(0, 0, "cgroup v2 memory.max of /")


def test_memory_high_below_max_is_the_limit(tmp_path: Path) -> None:
    """memory.high throttles before memory.max kills, and the source names it."""
    root = plant(tmp_path, docker_v2(v2(3 * GIB, usage=GIB, high=2 * GIB)))
    assert Cgroup(root).memory_limit() == MemoryLimit(2 * GIB, GIB, "cgroup v2 memory.high of /")


def test_memory_high_above_max_does_not_count(tmp_path: Path) -> None:
    """The lower one of memory.max and memory.high is the limit."""
    root = plant(tmp_path, docker_v2(v2(2 * GIB, high=3 * GIB)))
    assert Cgroup(root).memory_limit() == MemoryLimit(2 * GIB, 0, "cgroup v2 memory.max of /")


def test_kubernetes_limit_on_the_pod_holds_for_its_container(tmp_path: Path) -> None:
    """A limit on an ancestor only is found, with the ancestor's usage."""
    top = "sys/fs/cgroup"
    files = (
        proc("0::/kubepods/pod1/app\n", V2_MOUNT)
        | {f"{top}/cgroup.controllers": "cpu memory\n"}  # the root cgroup has no memory files
        | under(f"{top}/kubepods", v2("max", usage=9 * GIB))
        | under(f"{top}/kubepods/pod1", v2(4 * GIB, usage=3 * GIB))
        | under(f"{top}/kubepods/pod1/app", v2("max", usage=GIB))
    )
    assert Cgroup(plant(tmp_path, files)).memory_limit() == MemoryLimit(
        4 * GIB, 3 * GIB, "cgroup v2 memory.max of /kubepods/pod1"
    )


def test_a_fuller_ancestor_decides_the_room(tmp_path: Path) -> None:
    """The smallest limit is reported, with the room of the fullest level on the path."""
    top = "sys/fs/cgroup"
    files = (
        proc("0::/pod/app\n", V2_MOUNT)
        | under(f"{top}/pod", v2(8 * GIB, usage=7 * GIB))
        | under(f"{top}/pod/app", v2(4 * GIB, usage=GIB))
    )
    found = Cgroup(plant(tmp_path, files)).memory_limit()
    assert found == MemoryLimit(
        4 * GIB,
        3 * GIB,
        "cgroup v2 memory.max of /pod/app, room by memory.max of /pod",
    )
    assert found.available == GIB


SIZES = st.integers(0, 2**40)


@given(st.lists(st.tuples(SIZES | st.just("max"), SIZES, SIZES), min_size=1, max_size=4))
def test_limit_and_room_are_the_smallest_on_the_path(
    levels: list[tuple[int | str, int, int]],
) -> None:
    """Whatever the numbers: limit is the smallest limit, available the smallest room."""
    with tempfile.TemporaryDirectory() as name:
        files, directory = proc("0::" + "/a" * len(levels) + "\n", V2_MOUNT), "sys/fs/cgroup"
        for limit, usage, inactive in levels:
            directory += "/a"
            files |= under(directory, v2(limit, usage, inactive))
        found = Cgroup(plant(Path(name), files)).memory_limit()
    limited = [(lim, max(0, u - i)) for lim, u, i in levels if isinstance(lim, int)]
    if not limited:
        assert found is None
        return
    assert found is not None
    assert found.limit == min(limit for limit, _ in limited)
    assert found.available == min(max(0, limit - used) for limit, used in limited)
    assert 0 <= found.used <= found.limit


def test_root_cgroup_has_no_limit(tmp_path: Path) -> None:
    """The root cgroup of v2 has no memory and no quota files, which is no limit."""
    files = proc("0::/\n", V2_MOUNT) | {"sys/fs/cgroup/cgroup.controllers": "cpu memory\n"}
    cgroup = Cgroup(plant(tmp_path, files))
    assert cgroup.memory_limit() is None
    assert cgroup.cpu_quota() is None


def test_a_missing_proc_is_no_cgroup(tmp_path: Path) -> None:
    """macOS and Windows have no /proc: no limit, no quota, no exception."""
    cgroup = Cgroup(tmp_path)
    assert cgroup.memory_limit() is None
    assert cgroup.cpu_quota() is None


def test_another_process_can_be_asked(tmp_path: Path) -> None:
    """``pid`` names the process whose cgroup is read."""
    files = under("sys/fs/cgroup", v2(GIB))
    files |= {"proc/7/cgroup": "0::/\n", "proc/7/mountinfo": V2_MOUNT}
    root = plant(tmp_path, files)
    assert Cgroup(root).memory_limit() is None
    assert Cgroup(root, pid="7").memory_limit() is not None


# --- memory, v1 and hybrid ---


def test_docker_v1_strips_the_bind_mounts_root_from_the_path(tmp_path: Path) -> None:
    """The mount's root is the container's cgroup path on the host, and no directory below it."""
    files = proc("9:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n", DOCKER_V1_MOUNTS)
    files |= under("sys/fs/cgroup/memory", v1(2 * GIB, usage=GIB, inactive=GIB // 2))
    files |= {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    cgroup = Cgroup(plant(tmp_path, files))
    assert cgroup.memory_limit() == MemoryLimit(2 * GIB, GIB // 2, "cgroup v1 memory.limit_in_bytes of /docker/ab")
    assert cgroup.cpu_quota() == 2.5


def test_a_child_of_the_bind_mounted_cgroup_is_found(tmp_path: Path) -> None:
    """Below a bind mount only the part of the path after the mount's root is a directory."""
    files = proc("9:memory:/docker/ab/job\n", DOCKER_V1_MOUNTS)
    files |= under("sys/fs/cgroup/memory", v1(4 * GIB, usage=GIB))
    files |= under("sys/fs/cgroup/memory/job", v1(2 * GIB))
    found = Cgroup(plant(tmp_path, files)).memory_limit()
    assert found is not None
    assert found.source == "cgroup v1 memory.limit_in_bytes of /docker/ab/job"
    assert found.limit == 2 * GIB


@pytest.mark.parametrize("path", ["/docker/ab", "/../sibling", "/", "/gone", "/../../etc"])
def test_a_path_that_names_no_directory_stands_for_the_mount_root(tmp_path: Path, path: str) -> None:
    """Where path and mount do not fit, the mount root is the nearest cgroup that can be seen."""
    files = proc(f"9:memory:{path}\n", V1_MOUNTS) | under("sys/fs/cgroup/memory", v1(GIB))
    files |= under("sys/fs/cgroup/sibling", v1(1))  # outside the mount
    found = Cgroup(plant(tmp_path, files)).memory_limit()
    assert found == MemoryLimit(GIB, 0, "cgroup v1 memory.limit_in_bytes of /")


def test_the_mount_that_shows_the_process_wins(tmp_path: Path) -> None:
    """Of two mounts of one hierarchy the one below which the process's directory lies is read."""
    whole_tree = "31 24 0:28 /../.. /host/cgroup ro - cgroup2 cgroup rw\n"
    files = proc("0::/\n", whole_tree + V2_MOUNT)
    files |= under("host/cgroup", v2(8 * GIB)) | under("sys/fs/cgroup", v2(GIB))
    found = Cgroup(plant(tmp_path, files)).memory_limit()
    assert found is not None
    assert found.limit == GIB


def test_a_removed_cgroup_is_still_held_by_its_ancestors(tmp_path: Path) -> None:
    """Of a path of which only the beginning exists, that beginning is read."""
    files = proc("0::/pod/app (deleted)\n", V2_MOUNT) | under("sys/fs/cgroup/pod", v2(GIB))
    found = Cgroup(plant(tmp_path, files)).memory_limit()
    assert found == MemoryLimit(GIB, 0, "cgroup v2 memory.max of /pod")


@pytest.mark.parametrize("own", [4 * GIB, V1_UNLIMITED])
def test_v1_reports_a_limit_above_the_mount_root(tmp_path: Path, own: object) -> None:
    """hierarchical_memory_limit holds the limits of ancestors that the container cannot see."""
    files = proc("9:memory:/docker/ab\n", DOCKER_V1_MOUNTS)
    files |= under("sys/fs/cgroup/memory", v1(own, usage=GIB, hierarchical=2 * GIB))
    assert Cgroup(plant(tmp_path, files)).memory_limit() == MemoryLimit(
        2 * GIB, GIB, "cgroup v1 hierarchical_memory_limit of /docker/ab"
    )


def test_v1_true_root_is_not_asked_for_hidden_limits(tmp_path: Path) -> None:
    """The true root (it alone holds cgroup.sane_behavior) has no ancestors and takes no limit."""
    files = proc("9:memory:/\n", V1_MOUNTS) | {"sys/fs/cgroup/memory/cgroup.sane_behavior": "0\n"}
    files |= under("sys/fs/cgroup/memory", v1(V1_UNLIMITED, hierarchical=GIB))
    assert Cgroup(plant(tmp_path, files)).memory_limit() is None


HYBRID_CGROUP = "9:name=systemd:/\n4:memory:/process_api/65e0\n2:cpuacct:/\n1:cpu:/\n0::/\n"
HYBRID_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)


def test_hybrid_reads_memory_and_cpu_from_v1(tmp_path: Path) -> None:
    """An empty v2 tree beside v1 controllers does not make the host a v2 host."""
    files = proc(HYBRID_CGROUP, HYBRID_MOUNTS)
    files |= {"sys/fs/cgroup/unified/cgroup.controllers": "hugetlb\n"}
    files |= under("sys/fs/cgroup/memory", v1(V1_UNLIMITED))
    files |= under("sys/fs/cgroup/memory/process_api", v1(V1_UNLIMITED))
    files |= under("sys/fs/cgroup/memory/process_api/65e0", v1(2 * GIB, usage=GIB))
    files |= {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    cgroup = Cgroup(plant(tmp_path, files))
    assert cgroup.memory_limit() == MemoryLimit(2 * GIB, GIB, "cgroup v1 memory.limit_in_bytes of /process_api/65e0")
    assert cgroup.cpu_quota() is None


def test_each_controller_is_decided_for_itself(tmp_path: Path) -> None:
    """Memory can be v2's while cpu is still v1's."""
    files = proc("1:cpu:/\n0::/job\n", HYBRID_MOUNTS)
    files |= under("sys/fs/cgroup/unified/job", v2(GIB)) | {
        "sys/fs/cgroup/unified/job/cpu.max": "700000 100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    cgroup = Cgroup(plant(tmp_path, files))
    assert cgroup.memory_limit() == MemoryLimit(GIB, 0, "cgroup v2 memory.max of /job")
    assert cgroup.cpu_quota() == 3.0


def test_v1_is_asked_before_v2(tmp_path: Path) -> None:
    """Where both offer a controller's files, v1 answers."""
    files = proc("4:memory:/\n0::/\n", HYBRID_MOUNTS)
    files |= under("sys/fs/cgroup/memory", v1(GIB)) | under("sys/fs/cgroup/unified", v2(1))
    found = Cgroup(plant(tmp_path, files)).memory_limit()
    assert found is not None
    assert found.source.startswith("cgroup v1")


@pytest.mark.parametrize("v1_mounts", ["", V1_MOUNTS])
def test_v1_without_a_mount_or_files_leaves_the_word_to_v2(tmp_path: Path, v1_mounts: str) -> None:
    """A v1 line in /proc/self/cgroup alone cannot be asked."""
    files = proc("4:memory:/\n0::/\n", v1_mounts + V2_MOUNT) | under("sys/fs/cgroup", v2(GIB))
    found = Cgroup(plant(tmp_path, files)).memory_limit()
    assert found is not None
    assert found.source.startswith("cgroup v2")


# --- strange names, vanished and unreadable files ---


@linux_names
def test_octal_escapes_in_the_mount_point_are_undone(tmp_path: Path) -> None:
    """mountinfo writes blanks as \\040 and backslashes as \\134."""
    mount = "32 24 0:28 / /my\\040cgroups\\134x rw - cgroup2 cgroup2 rw\n"
    files = proc("0::/a b\n", mount) | under("my cgroups\\x/a b", v2(GIB))
    found = Cgroup(plant(tmp_path, files)).memory_limit()
    assert found == MemoryLimit(GIB, 0, "cgroup v2 memory.max of /a b")


@linux_names
@pytest.mark.parametrize("name", ["pod.slice:cri-containerd:6ef1", "a\x0bb\u2028c", "caf\udce9"])
def test_a_cgroup_may_have_any_name(tmp_path: Path, name: str) -> None:
    """Colons (containerd's), odd line breaks and bytes that are not UTF-8 belong to the name."""
    files = proc(f"0::/{name}\n", V2_MOUNT) | under(f"sys/fs/cgroup/{name}", v2(GIB))
    assert Cgroup(plant(tmp_path, files)).memory_limit() is not None


def test_limits_are_read_afresh(tmp_path: Path) -> None:
    """A limit that is changed while running holds from the next question on."""
    cgroup = Cgroup(plant(tmp_path, docker_v2(v2("max"))))
    assert cgroup.memory_limit() is None
    plant(tmp_path, docker_v2(v2(GIB)))
    found = cgroup.memory_limit()
    assert found is not None
    assert found.limit == GIB


@pytest.mark.parametrize("gone", ["memory.max", "memory.current"])
def test_a_vanished_file_leaves_its_level_out(tmp_path: Path, gone: str) -> None:
    """When a cgroup is removed while being read, the other levels still answer."""
    files = proc("0::/a\n", V2_MOUNT) | under("sys/fs/cgroup", v2(4 * GIB))
    root = plant(tmp_path, files | under("sys/fs/cgroup/a", v2(GIB)))
    cgroup = Cgroup(root)
    (root / "sys/fs/cgroup/a" / gone).unlink()
    assert cgroup.memory_limit() == MemoryLimit(4 * GIB, 0, "cgroup v2 memory.max of /")


def test_a_file_that_fails_on_read_leaves_its_level_out(tmp_path: Path) -> None:
    """An error after the open (here a directory; ENODEV of a removed cgroup) is no exception."""
    root = plant(tmp_path, docker_v2(v2(GIB)))
    (root / "sys/fs/cgroup/memory.max").unlink()
    (root / "sys/fs/cgroup/memory.max").mkdir()
    assert Cgroup(root).memory_limit() is None


def test_garbage_leaves_its_level_out(tmp_path: Path) -> None:
    """Text that is no number is no limit, and a good level beside it still counts."""
    files = proc("0::/a\n", V2_MOUNT) | under("sys/fs/cgroup", v2(4 * GIB))
    root = plant(tmp_path, files | under("sys/fs/cgroup/a", v2("12 monkeys", high="0x10")))
    assert Cgroup(root).memory_limit() == MemoryLimit(4 * GIB, 0, "cgroup v2 memory.max of /")


def test_lines_of_another_format_are_skipped(tmp_path: Path) -> None:
    """Short, empty and foreign lines in the two /proc files do not hide the good ones."""
    files = proc("\n::\nmemory\n0::/\n", f"\n - \n1 2 - cgroup2 x rw\n1 2 0:1 / /x rw - cgroup\n{V2_MOUNT}")
    assert Cgroup(plant(tmp_path, files | under("sys/fs/cgroup", v2(GIB)))).memory_limit()


BOTH = (
    proc("9:memory:/a\n4:cpu,cpuacct:/a\n0::/a\n", V1_MOUNTS)
    | under("sys/fs/cgroup/memory/a", v1(GIB))
    | under("sys/fs/cgroup/cpu,cpuacct/a", {"cpu.cfs_quota_us": "1", "cpu.cfs_period_us": "1"})
)
V2_ONLY = proc("0::/a\n", V2_MOUNT) | under("sys/fs/cgroup/a", v2(GIB) | {"cpu.max": "1 1"})
PIECES = [
    "0",
    "1",
    "max",
    "-1",
    " ",
    "\n",
    ":",
    "/",
    "..",
    "\\040",
    "\\777",
    "\\000",
    " - ",
    "9" * 70,
]
PIECES += ["memory", "cpu", "cgroup", "cgroup2", "inactive_file ", "\0", "²", V2_MOUNT, "0::/a\n"]
CONTENTS = st.binary() | st.lists(st.sampled_from(PIECES)).map(lambda p: "".join(p).encode())


@given(
    st.sampled_from([BOTH, V2_ONLY]),
    st.dictionaries(st.sampled_from(sorted({*BOTH, *V2_ONLY})), CONTENTS, min_size=1),
    st.none() | st.integers(),
)
def test_no_content_of_any_file_raises(files: Files, strange: dict[str, bytes], physical: int | None) -> None:
    """Any bytes in any file give an answer whose numbers make sense, or None."""
    with tempfile.TemporaryDirectory() as name:
        plant(Path(name), files)
        cgroups = [Cgroup(name)]  # made before and after the files turn strange
        plant(Path(name), strange)
        cgroups.append(Cgroup(name))
        for cgroup in cgroups:
            found = cgroup.memory_limit(physical)
            assert found is None or 0 <= found.used <= found.limit < 2**60
            quota = cgroup.cpu_quota()
            assert quota is None or quota > 0
            assert usable_cpus(cgroup) >= 1


# --- CPUs ---


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("max 100000\n", None),
        ("150000 0\n", None),
        ("150000\n", None),
        ("", None),
        ("1.5 1\n", None),
    ],
)
def test_cpu_max_is_quota_over_period(tmp_path: Path, text: str, quota: float | None) -> None:
    """``cpu.max`` is quota and period in microseconds; ``max`` or garbage is no quota."""
    root = plant(tmp_path, docker_v2({"cpu.max": text}))
    assert Cgroup(root).cpu_quota() == quota


def test_the_smallest_cpu_quota_on_the_path_counts(tmp_path: Path) -> None:
    """In v2 a child may have a larger quota than its parent; the parent's still holds."""
    files = proc("0::/pod/app\n", V2_MOUNT) | {
        "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
        "sys/fs/cgroup/pod/app/cpu.max": "800000 100000\n",
    }
    assert Cgroup(plant(tmp_path, files)).cpu_quota() == 2.0


@pytest.mark.parametrize(("quota", "period"), [("-1", "100000"), ("100000", ""), ("", "100000")])
def test_v1_without_a_quota_or_period_has_none(tmp_path: Path, quota: str, period: str) -> None:
    """v1 writes -1 for no quota, and half an answer is none."""
    files = proc("4:cpu,cpuacct:/\n", V1_MOUNTS)
    files |= under("sys/fs/cgroup/cpu,cpuacct", {"cpu.cfs_quota_us": quota})
    files |= under("sys/fs/cgroup/cpu,cpuacct", {"cpu.cfs_period_us": period})
    assert Cgroup(plant(tmp_path, files)).cpu_quota() is None


def test_a_quota_below_one_cpu_still_gives_one(tmp_path: Path) -> None:
    """Half a CPU is worth one thread."""
    assert usable_cpus(Cgroup(plant(tmp_path, docker_v2({"cpu.max": "50000 100000\n"})))) == 1


def test_a_part_of_a_cpu_is_rounded_up(tmp_path: Path) -> None:
    """1.5 CPUs are worth two threads, if the mask allows two."""
    cgroup = Cgroup(plant(tmp_path, docker_v2({"cpu.max": "150000 100000\n"})))
    assert usable_cpus(cgroup) == min(2, usable_cpus(Cgroup(tmp_path / "nothing")))


def in_child(code: str, *arguments: str) -> str:
    """What ``code`` prints in a new Python that finds devicekit where this one does."""
    source = str(Path(devicekit.container.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r})\n{code}"
    run = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return run.stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity masks")
def test_the_affinity_mask_bounds_the_cpus(tmp_path: Path) -> None:
    """A process that is pinned to one CPU can use one, quota or not."""
    code = (
        "import os; from devicekit.container import *\n"
        "os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
        "print(usable_cpus(Cgroup(sys.argv[1])))"
    )
    plant(tmp_path, docker_v2({"cpu.max": "800000 100000\n"}))
    assert in_child(code, str(tmp_path)) == "1\n"


# --- this machine ---


def test_this_machine_answers() -> None:
    """Whatever this machine is, its real files give sensible answers."""
    found = Cgroup().memory_limit()
    assert found is None or 0 <= found.used <= found.limit
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.fixture
def real_cgroup() -> Iterator[Callable[[str, Files], Path]]:
    """Make a cgroup below this process's own in a v1 hierarchy; removed afterwards."""
    made: list[Path] = []

    def make(controller: str, files: Files) -> Path:
        if not Path("/proc/self/cgroup").exists():
            pytest.skip("this system has no cgroups")
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = {name: line.split(":", 2)[2] for line in lines for name in line.split(":")[1].split(",")}
        if controller not in own:
            pytest.skip(f"this machine has no v1 {controller} controller")
        parent = Path(f"/sys/fs/cgroup/{controller}") / own[controller].lstrip("/")
        directory = parent / f"devicekit-test-{os.getpid()}"
        try:
            directory.mkdir()
            made.append(directory)
            for name, text in files.items():
                (directory / name).write_text(text)
        except OSError as error:
            pytest.skip(f"no right to make a cgroup here: {error}")
        return directory

    yield make
    for directory in made:
        for _ in range(50):  # the kernel may need a moment after the last process has left
            try:
                directory.rmdir()
                break
            except OSError:
                time.sleep(0.02)
        else:
            directory.rmdir()


ENTER = (
    "import dataclasses, json; from devicekit.container import *\n"
    "for directory in sys.argv[1:]: open(directory + '/cgroup.procs', 'w').write('0')\n"
)


def test_a_real_memory_limit_is_seen(real_cgroup: Callable[[str, Files], Path]) -> None:
    """A process in a real cgroup with 2 GiB sees 2 GiB, and its own memory as used."""
    directory = real_cgroup("memory", {"memory.limit_in_bytes": str(2 * GIB)})
    code = ENTER + (
        "block = bytearray(b'x') * 2**26\nfound = Cgroup().memory_limit()\nprint(json.dumps(dataclasses.asdict(found)))"
    )
    found = json.loads(in_child(code, str(directory)))
    assert found["limit"] == 2 * GIB
    assert 2**26 <= found["used"] < GIB
    assert found["source"].startswith("cgroup v1 memory.limit_in_bytes of ")
    assert found["source"].endswith(directory.name)


def test_a_real_cpu_quota_is_seen(real_cgroup: Callable[[str, Files], Path]) -> None:
    """A process in a real cgroup with half a CPU is told 0.5, and worth one thread."""
    files = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    code = ENTER + "print(Cgroup().cpu_quota(), usable_cpus())"
    assert in_child(code, str(real_cgroup("cpu", files))) == "0.5 1\n"
