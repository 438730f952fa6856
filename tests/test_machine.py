"""A process in a container, or in a job of Slurm, counts what it may use there, not what its machine has."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from videodiff import machine

ROOT, GIB = Path(__file__).parents[1], 2**30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give this process control groups: the lines that name its own, and the files of all; 64 cores and 512 GiB."""

    def give(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / name).write_text(f"{text}\n")

    monkeypatch.setattr(machine, "OWN", tmp_path / "own")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**27}.__getitem__)
    return give


# A quota of 250 ms in each period of 100 ms is two and a half cores: three threads.
@pytest.mark.parametrize(
    ("own", "files", "cores", "memory"),
    [
        pytest.param("0::/\n", {}, 64, 512 * GIB, id="no limit"),
        pytest.param(
            "0::/\n", {"memory.max": str(4 * GIB), "cpu.max": "250000 100000"}, 3, 4 * GIB, id="version 2, container"
        ),
        pytest.param("0::/\n", {"memory.max": "max", "cpu.max": "max 100000"}, 64, 512 * GIB, id="version 2, none"),
        pytest.param(
            "0::/slurm/job_1/step_0\n",
            {
                "slurm/job_1/step_0/memory.max": "max",
                "slurm/job_1/memory.max": str(32 * GIB),
                "slurm/memory.max": str(256 * GIB),
                "slurm/job_1/step_0/cpu.max": "800000 100000",
                "slurm/job_1/cpu.max": "1600000 100000",
            },
            8,
            32 * GIB,
            id="version 2, a job whose limit stands above its step",
        ),
        pytest.param(
            "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/\n",
            {
                "cpu/cpu.cfs_quota_us": "50000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": str(2 * GIB),
            },
            1,
            2 * GIB,
            id="version 1, a path of the host",
        ),
        pytest.param(
            "5:cpu:/job\n4:memory:/job\n",
            {
                "cpu/job/cpu.cfs_quota_us": "-1",
                "cpu/job/cpu.cfs_period_us": "100000",
                "memory/job/memory.limit_in_bytes": "9223372036854771712",
            },
            64,
            512 * GIB,
            id="version 1, none",
        ),
        pytest.param("4:cpuset:/a\n", {"cpuset/a/memory.max": "4096"}, 64, 512 * GIB, id="of another controller"),
    ],
)
def test_limits_of_control_groups_count(
    groups: Callable[..., None], own: str, files: dict[str, str], cores: int, memory: int
) -> None:
    groups(own, files)
    assert (machine.cores(), machine.memory()) == (cores, memory)


def test_cores_that_the_process_is_bound_to_count(groups: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    groups("0::/\n", {"cpu.max": "800000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert machine.cores() == 2


def test_a_machine_without_control_groups_has_what_it_has(
    tmp_path: Path, groups: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not (tmp_path / "own").exists()
    assert (machine.cores(), machine.memory()) == (64, 512 * GIB)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


def test_nothing_else_asks_what_the_machine_has() -> None:
    asks = re.compile(r"cpu_count|sched_getaffinity|SC_PHYS_PAGES|MemTotal|virtual_memory")
    files = [path for room in ("videodiff", "data_prep") for path in (ROOT / room).rglob("*.py")]
    assert [path.name for path in files if asks.search(path.read_text())] == ["machine.py"]


@pytest.mark.parametrize("most", [2**25, 2**31])
def test_freed_memory_is_kept_up_to_the_size_that_glibc_takes(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}

    def mallopt(name: int, size: int) -> int:
        # The limit is one of mmap's threshold, -3.
        taken = name != -3 or size <= most
        found.update({name: size} if taken else {})
        return int(taken)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    machine.keep_freed_memory()
    assert found == {-1: 2**30, -3: min(most, 2**30)}
