"""All processes of a machine share the pace at which a host is asked."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from data_prep.fetch.hosts import Hosts


def ask(folder: Path, times: int, moments: multiprocessing.Queue) -> None:
    hosts = Hosts(folder, rate=20)
    for _ in range(times):
        hosts.wait("example.org:80")
        moments.put(time.time())


def test_processes_share_the_pace_of_a_host(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    moments = context.Queue()
    processes = [context.Process(target=ask, args=(tmp_path, 6, moments)) for _ in range(2)]
    for process in processes:
        process.start()
    times = sorted(moments.get(timeout=120) for _ in range(12))
    for process in processes:
        process.join()
    assert times[-1] - times[0] >= 11 / 20 - 0.06


def test_a_host_that_asks_for_a_pause_gets_it_and_the_others_do_not(tmp_path: Path) -> None:
    hosts, start = Hosts(tmp_path, rate=1000), time.time()
    hosts.pause("slow", 0.5)
    hosts.wait("quick")
    assert time.time() - start < 0.4
    hosts.wait("slow")
    assert time.time() - start >= 0.5


def test_a_clock_that_was_set_back_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "host").write_text(f"{time.time() + 1e6:020.6f}")
    start = time.time()
    Hosts(tmp_path, rate=1000).wait("host")
    assert time.time() - start < 60


def test_a_shorter_pause_ends_no_longer_one(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, 100)
    hosts.pause("a.b", 300)
    hosts.pause("a.b", 1)
    assert 290 < float((tmp_path / "a.b").read_text()) - time.time() <= 300
