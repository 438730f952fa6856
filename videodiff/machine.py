"""What this process may use of its machine: cores and memory, within the limits of its container or of its job."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Where Linux says which control groups a process is in, and where their limits are.
OWN, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores() -> int:
    """Return how many cores this process may use; a part of one counts as one."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(there, *(math.ceil(min(limit, there)) for limit in map(core_limit, groups("cpu")))))


def memory() -> int:
    """Return how many bytes of memory this process may use at most."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(there, *map(memory_limit, groups("memory")))


def keep_freed_memory() -> None:
    """Keep glibc from returning large blocks to the kernel, which empties each anew when it is next asked for.

    On a CPU a third of a training step is page faults otherwise.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(trim_threshold, 1 << 30)
        # Older versions take at most 32 MiB; with the first of the two alone every tensor would come from the kernel.
        libc.mallopt(mmap_threshold, 1 << 30) or libc.mallopt(mmap_threshold, 1 << 25)


def groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups and of the groups that contain them: each may have a limit.

    A line of version 1 names its controllers, the line of version 2 none. In a container the path may be the one that
    only the host has; then the container's own group is the folder at the top.
    """
    yield GROUPS
    for line in OWN.read_text().splitlines() if OWN.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = GROUPS / controller if controllers else GROUPS
            inside = top / path.strip("/")
            yield from (folder for folder in (inside, *inside.parents) if folder.is_relative_to(top))


def core_limit(group: Path) -> float:
    """Return how many cores a control group may use, `inf` without a limit: its time in each period of the clock."""
    found = words(group / "cpu.max") or [*words(group / "cpu.cfs_quota_us"), *words(group / "cpu.cfs_period_us")]
    return int(found[0]) / int(found[1]) if len(found) == 2 and found[0].isdigit() else math.inf


def memory_limit(group: Path) -> float:
    """Return how many bytes a control group may use, `inf` without a limit."""
    found = words(group / "memory.max") or words(group / "memory.limit_in_bytes")
    return int(found[0]) if found and found[0].isdigit() else math.inf


def words(file: Path) -> list[str]:
    """Return the words of a file; none if it is not there."""
    return file.read_text().split() if file.is_file() else []
