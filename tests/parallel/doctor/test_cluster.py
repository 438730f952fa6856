"""What the doctor says of machines together: ranks are threads here, each with a folder and a clock of its own."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from tests.material import warm
from videodiff.parallel.doctor import cluster
from videodiff.parallel.doctor.cluster import Group, clocks, meet, shared
from videodiff.parallel.environment import Finding, Place
from videodiff.parallel.launcher import meeting_port


def together(world: int, call: Callable[[Group], Any], seconds: float = 20) -> list[Any]:
    """Return what each of so many ranks finds when all call at the same time."""
    store = distributed.HashStore()
    groups = [
        Group(Place("torchrun", rank, world, 0, 1, "127.0.0.1", 1), store, torch.device("cpu"), seconds)
        for rank in range(world)
    ]
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(call, groups))


def test_a_folder_that_all_see_is_told_with_its_delay(tmp_path: Path) -> None:
    found = together(3, lambda group: list(shared(group, tmp_path)))
    assert found[0] == found[1] == found[2]
    assert re.search(r"a file is seen by all after \d\.\d\d s", found[0][0].found)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_with_a_folder_of_its_own_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FOLDER_S", 0.1)
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()

    def look(group: Group) -> list[Finding]:
        return list(shared(group, tmp_path / ("elsewhere" if group.place.rank == 2 else "here")))

    for (found,) in together(3, look):
        assert found.stops
        assert "rank 0 does not see the file of rank 2" in found.found


def test_a_folder_that_is_slow_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FOLDER_S", 0.2)
    begun = time.monotonic()
    sees = cluster.sees
    monkeypatch.setattr(cluster, "sees", lambda path, mark: sees(path, mark) and time.monotonic() > begun + 0.5)
    (found,) = together(2, lambda group: list(shared(group, tmp_path)))[0]
    assert not found.stops
    assert "actimeo" in found.do


def test_a_clock_that_goes_wrong_is_told_by_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    late, real = threading.local(), time.time
    monkeypatch.setattr(cluster.time, "time", lambda: real() + getattr(late, "by", 0.0))

    def look(group: Group) -> list[Finding]:
        late.by = 90.0 if group.place.rank == 1 else 0.0
        return list(clocks(group))

    (found,) = together(3, look)[0]
    assert re.match(r"(89|90)\.\d\d s apart", found.found)
    assert "rank 1 ahead of rank" in found.found
    (found,) = together(3, lambda group: list(clocks(group)))[0]
    assert found.expected == ""


def test_processes_that_do_not_come_are_named() -> None:
    port = meeting_port()
    store, (found,) = meet(Place("Slurm", 0, 3, 0, 1, "127.0.0.1", port), 1)
    assert store is None
    assert found.found == "1 of 3 processes; rank 1, 2 is missing"
    begun = time.monotonic()
    store, (found,) = meet(Place("Slurm", 1, 3, 0, 1, "127.0.0.1", meeting_port()), 1)
    assert store is None
    assert found.found.startswith("no answer at 127.0.0.1:")
    assert time.monotonic() - begun < 10


def test_two_processes_are_examined_together(tmp_path: Path) -> None:
    command = ["-m", "videodiff.parallel.torchrun", "--standalone", "--nproc-per-node=2", "-m", "videodiff", "doctor"]
    done = warm.run([sys.executable, *command, "mib=1", "gib=0", "gb_per_s=0", f"folder={tmp_path}"], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any(
        re.match(r"  ok    all-reduce: \d+\.\d\d GB/s for each process \(gloo, 1 MiB", line) for line in lines
    ), lines
    assert lines[-1].startswith("videodiff doctor: fit to train: 0 wrong")
    assert sum(line.startswith("together:") for line in lines) == 1
