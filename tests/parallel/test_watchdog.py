"""A process that is gone or stands still ends all of a training, and one line says which and where."""

from __future__ import annotations

import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from torch import distributed

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks, slurm
from videodiff.parallel import watchdog
from videodiff.parallel.node.parent import PARENT
from videodiff.parallel.watchdog import Beat, Watch, Watchdog, call_of, frames, gone_line, still_line

HERE = Beat(1, 10, "the gradient of step 5", "all_reduce (torch/distributed/x.py:1)", True, "n1")


def test_a_process_that_says_nothing_is_named_with_its_host_and_what_it_was_at(tmp_path: Path) -> None:
    watch = Watch(0, 3, distributed.HashStore(), tmp_path, lost=5, still=1000)
    seen = watch.seen
    for rank in range(3):
        watch.store.set(f"beat/{rank}", json.dumps(HERE._replace(host=f"n{rank}")))
    assert watch.look() is None
    seen.update({rank: entry._replace(told=entry.told - 6 * (rank == 2)) for rank, entry in seen.items()})
    line = watch.look()["line"]
    assert line.startswith("rank 2 on n2 (the gradient of step 5) is gone: nothing was heard for 5 s")
    assert json.loads(watch.store.get("found"))["line"] == line


def test_a_process_that_is_done_is_not_missed(tmp_path: Path) -> None:
    watch = Watch(0, 2, distributed.HashStore(), tmp_path, lost=5, still=5)
    for rank in range(2):
        watch.store.set(f"beat/{rank}", json.dumps(HERE._replace(done=rank == 1)))
    seen = watch.seen
    assert watch.look() is None
    seen[1] = seen[1]._replace(told=seen[1].told - 100, further=seen[1].further - 100)
    assert watch.look() is None
    watch.store.set("beat/0", json.dumps(HERE._replace(count=2, done=True)))
    assert watch.look() is None, "all are done"


@pytest.mark.parametrize(
    ("hangs", "why"),
    [
        (HERE._replace(marks=9, at="the batch of step 5"), "it has passed fewer marks"),
        (HERE._replace(waits=False, where="sleep (x.py:3)"), "it does not wait for the others"),
    ],
    ids=["behind", "at the same mark"],
)
def test_who_stands_still_is_told_from_those_that_wait(hangs: Beat, why: str, tmp_path: Path) -> None:
    line = still_line({0: HERE, 1: hangs, 2: HERE}, 60, tmp_path)
    assert line.startswith(f"rank 1 on n1 stands still for 60 s after {hangs.at}, in {hangs.where}; "), why
    assert f"rank 0, 2 waits after {HERE.at}, in {HERE.where}" in line
    # Where all wait at the same mark, nobody knows for whom.
    line = still_line({0: HERE, 1: HERE}, 60, tmp_path)
    assert line.startswith("rank 0, 1 on n1 stands still for 60 s")
    assert " waits " not in line


def test_no_process_stands_still_as_long_as_one_gets_further(tmp_path: Path) -> None:
    watch = Watch(0, 2, distributed.HashStore(), tmp_path, lost=50, still=5)
    seen = watch.seen
    for step in range(1, 5):
        watch.store.set("beat/0", json.dumps(HERE._replace(count=step)))
        watch.store.set("beat/1", json.dumps(HERE._replace(count=step, marks=step)))
        assert watch.look() is None
        seen.update({rank: entry._replace(further=entry.further - 3) for rank, entry in seen.items()})
    # Both still report, and pass no mark.
    for rank, marks in ((0, HERE.marks), (1, 4)):
        watch.store.set(f"beat/{rank}", json.dumps(HERE._replace(count=9, marks=marks)))
    seen.update({rank: entry._replace(further=entry.further - 3) for rank, entry in seen.items()})
    assert "stands still" in watch.look()["line"]


def test_many_processes_that_are_gone_stay_one_line() -> None:
    line = gone_line(range(64), dict.fromkeys(range(64), HERE), 40)
    assert " and 56 more is gone" in line
    assert line.count(" on n1 ") == 8
    assert len(line) < 500


def test_where_a_thread_is_is_told_by_its_innermost_lines() -> None:
    ready, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), leave.wait()))
    thread.start()
    ready.wait()
    time.sleep(0.1)
    where, waits = call_of(frames()[thread.ident])
    leave.set()
    thread.join()
    assert where.startswith("wait (")
    assert "called from tests/parallel/test_watchdog.py:" in where
    assert not waits


def test_a_thread_waits_for_others_inside_of_their_calls(tmp_path: Path) -> None:
    module = tmp_path / "site-packages" / "torch" / "distributed" / "c10d.py"
    module.parent.mkdir(parents=True)
    module.write_text("import sys\n\ndef all_reduce(call_of):\n    return call_of(sys._getframe())\n")
    where, waits = runpy.run_path(str(module))["all_reduce"](call_of)
    assert where.startswith("all_reduce (torch/distributed/c10d.py:4) called from tests/parallel/test_watchdog.py:")
    assert waits


def test_a_mark_names_the_step_that_is_under_way(tmp_path: Path) -> None:
    callback = Watchdog(tmp_path)
    callback.mark(SimpleNamespace(global_step=4), "the batch")
    callback.watch = Watch(0, 1, distributed.HashStore(), tmp_path)
    callback.mark(SimpleNamespace(global_step=4), "the batch")
    assert (callback.watch.marks, callback.watch.at) == (1, "the batch of step 5")


@pytest.mark.parametrize(
    ("trouble", "lost", "parent", "limit"),
    [
        ({}, 40, False, 40),
        ({"cut": "x"}, 40, False, 10),
        ({"failed": "x"}, 40, False, 10),
        ({"cut": "x"}, 40, True, 30),
        ({"failed": "x"}, 5, True, 5),
    ],
)
def test_a_process_is_gone_sooner_if_another_one_met_a_failure(
    trouble: dict[str, str], lost: float, parent: bool, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARENT, "1") if parent else monkeypatch.delenv(PARENT, raising=False)
    watch = Watch(0, 2, distributed.HashStore(), tmp_path, lost=lost)
    watch.seen[1] = watch.seen[1]._replace(beat=HERE._replace(**trouble))
    assert watch.limit() == limit


def test_the_store_is_kept_for_those_alone_that_will_read_it(tmp_path: Path) -> None:
    watch = Watch(0, 5, distributed.HashStore(), tmp_path)
    watch.store.set("beat/1", json.dumps(HERE._replace(done=True)))
    watch.store.set("beat/4", json.dumps(HERE._replace(failed="no room")))
    watch.seen[2] = watch.seen[2]._replace(told=watch.seen[2].told - 60)
    watch.store.set("beat/3", json.dumps(HERE))
    kept = threading.Thread(target=watch.keep_store, args=(30.0,))
    kept.start()
    kept.join(0.5)
    assert kept.is_alive(), "for rank 3"
    watch.store.set("knows/3", "")
    kept.join(10)
    assert not kept.is_alive()


class Answers:
    """A store that answers until its keeper is gone."""

    def __init__(self) -> None:
        self.gone = threading.Event()

    def check(self, keys: list[str]) -> bool:
        if self.gone.is_set():
            raise RuntimeError("Connection reset by peer")
        return False


BEATS = """
import gc, sys, threading, time
from videodiff.parallel.watchdog import Watch

class Store:
    def set(self, key, value):
        pass

def work():
    while True:
        thread = threading.Thread(target=list)
        thread.start()
        thread.join()

watch = Watch(0, 2, Store(), None)
threading.Thread(target=work, daemon=True).start()
# A collection lets other threads run, as a destructor that closes a file does.
gc.callbacks.append(lambda *about: time.sleep(0.001))
gc.set_threshold(1)
for _ in range(20):
    watch.tell()
# Python's own end collects much garbage, each time with the pause above.
gc.callbacks.clear()
print("told", gc.isenabled())
"""


def test_a_collection_of_garbage_never_stops_a_process_that_reports() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEATS], capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "told True\n", done.stderr


KEEPS_A_STORE = """
import sys, time
from datetime import timedelta
from torch import distributed
store = distributed.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=20), wait_for_workers=False)
print(store.port, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
def test_a_first_process_that_no_longer_answers_is_missed_even_where_its_connections_stay_open(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = subprocess.Popen([sys.executable, "-c", KEEPS_A_STORE], stdout=subprocess.PIPE, text=True)
    found: queue.Queue[dict[str, Any]] = queue.Queue()
    monkeypatch.setattr(Watch, "end", lambda watch, finding: found.put(finding))
    try:
        port = int(first.stdout.readline())
        store = distributed.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=20), wait_for_workers=False)
        watch = Watch(1, 2, store, tmp_path, lost=4)
        watch.start()
        with pytest.raises(queue.Empty):
            found.get(timeout=3)
        first.send_signal(how)
        line = found.get(timeout=20)["line"]
        assert line.startswith(("rank 0 is gone", "rank 0 on 127.0.0.1 is gone: no answer for 4 s"))
    finally:
        first.kill()
        watch.finish()
        first.wait()


class Slow:
    """A store as a starved process meets it: once something is found, it does not read for some seconds."""

    def __init__(self, store: Any, seconds: float) -> None:
        self.store, self.seconds, self.found, self.asked = store, seconds, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def check(self, keys: list[str]) -> bool:
        if self.found.is_set() and not self.asked.is_set():
            time.sleep(self.seconds)
        there = self.store.check(keys)
        if keys == ["found"] and there:
            self.asked.set()
        return there


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a beat take half a second, and let a process that would end only end the thread of its watchdog."""
    monkeypatch.setattr(watchdog, "BEAT_S", 0.5)
    monkeypatch.setattr(watchdog, "GRACE_S", 0.1)
    monkeypatch.setattr(os, "_exit", lambda status: None)


@pytest.mark.usefixtures("quick")
def test_what_the_first_process_prints_it_can_print_before_another_ends_the_training(tmp_path: Path) -> None:
    watch = Watch(1, 2, Answers(), tmp_path, lost=60)
    ends = threading.Thread(target=watch.end, args=({"line": "rank 0 ended with an error: no room", "by": None},))
    ends.start()
    early = watch.found.wait(3 * watchdog.BEAT_S)
    watch.store.gone.set()
    ends.join(20)
    assert (early, watch.found.is_set()) == (False, True)


@pytest.mark.usefixtures("quick")
def test_what_two_threads_find_is_printed_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watch = Watch(1, 2, Answers(), tmp_path)
    for line in ("rank 0 is gone", "rank 0 on n0 is gone"):
        watch.end({"line": line, "by": 1})
    assert errors(capfd) == ["videodiff train: error: rank 0 is gone"]


def three(folder: Path) -> tuple[Watch, Watch, distributed.TCPStore]:
    """Return the watches of ranks 0 and 1, which begin, with the store; rank 2 has told once and is gone."""
    limit = timedelta(seconds=20)
    store = distributed.TCPStore("127.0.0.1", 0, None, True, limit, wait_for_workers=False)
    far = distributed.TCPStore("127.0.0.1", store.port, None, False, limit, wait_for_workers=False)
    watches = Watch(0, 3, store, folder), Watch(1, 3, far, folder)
    Watch(2, 3, store, folder).tell()
    for watch in watches:
        watch.start()
    return *watches, store


def ends_well(store: Any, folder: Path) -> None:
    """Let rank 2 report that it is done."""
    third = Watch(2, 3, store, folder)
    third.count = 1
    third.done.set()
    third.tell()


def stop(*watches: Watch) -> None:
    for watch in watches:
        watch.done.set()
    for watch in watches:
        watch.thread.join(20)


def errors(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if "error" in line]


@pytest.mark.usefixtures("quick")
def test_the_first_process_leaves_with_the_store_only_when_a_slow_one_has_read_the_finding(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, store = three(tmp_path)
    second.store = slow = Slow(second.store, 3 * watchdog.BEAT_S)
    announce = store.set
    first.store = mock.Mock(wraps=store)
    first.store.set = lambda key, value: (announce(key, value), key == "found" and slow.found.set())
    first.is_cut("Connection closed by peer")
    second.is_cut("Connection closed by peer")
    assert first.speaks()
    assert slow.asked.is_set(), "rank 0 would have left with the store"
    assert second.found.wait(20)
    stop(first, second)
    (line,) = errors(capfd)
    assert " rank 2 on " in line
    assert " is gone" in line


@pytest.mark.usefixtures("quick")
def test_a_process_that_lost_a_connection_waits_for_the_first_one_which_is_busy_elsewhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = three(tmp_path)
    begun = time.monotonic()
    second.is_cut("Connection closed by peer")
    assert second.speaks()
    assert time.monotonic() - begun < first.lost, "one that lost a connection tells the first one that there is trouble"
    stop(first, second)
    (line,) = errors(capfd)
    assert " rank 2 on " in line


@pytest.mark.usefixtures("quick")
def test_a_connection_that_is_lost_while_all_report_is_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, store = three(tmp_path)
    third = Watch(2, 3, store, tmp_path)
    third.count = 1
    third.start()
    first.is_cut("Connection reset by peer")
    second.is_cut("Connection reset by peer")
    assert first.found.wait(20)
    assert second.found.wait(20)
    assert third.found.wait(20)
    stop(first, second, third)
    (line,) = errors(capfd)
    assert "rank 0, 1 lost a connection (Connection reset by peer), but all processes still report" in line


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_ends_with_an_error_of_its_own_is_the_only_one_to_speak(
    who: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, store = three(tmp_path)
    ends_well(store, tmp_path)
    failing, other = (first, second) if who == 0 else (second, first)
    failing.fail("data.root: found nothing")
    if who == 0:
        # The process ends, and the store with it.
        assert store.check(["knows/1"]), "rank 0 would have left with the store"
        other.store = mock.Mock(check=mock.Mock(side_effect=RuntimeError), set=mock.Mock(side_effect=RuntimeError))
    else:
        failing.over.set()
        failing.tell = lambda: None
    other.is_cut("Connection closed by peer")
    assert other.found.wait(20)
    stop(first, second)
    assert errors(capfd) == []
    assert (
        f"rank {who} ended with an error: data.root: found nothing" in (tmp_path / f"rank_{other.rank}.txt").read_text()
    )


@pytest.mark.usefixtures("quick")
def test_after_an_error_of_all_processes_the_first_one_waits_for_the_slowest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, store = three(tmp_path)
    ends_well(store, tmp_path)
    error = ValueError("no room")
    error.of_all_ranks = True
    callbacks = [Watchdog(tmp_path) for _ in range(2)]
    for callback, watch in zip(callbacks, (first, second), strict=True):
        callback.watch = watch
    leaves = threading.Thread(target=callbacks[0].on_exception, args=(None, None, error))
    leaves.start()
    time.sleep(3 * watchdog.BEAT_S)
    assert leaves.is_alive(), "rank 0 would have left with the store"
    callbacks[1].on_exception(None, None, error)
    leaves.join(20)
    assert not leaves.is_alive()
    assert not first.found.is_set()
    assert not second.found.is_set()
    assert errors(capfd) == []


def test_a_process_that_stood_still_itself_does_not_say_that_the_others_did(tmp_path: Path) -> None:
    watch = Watch(0, 2, distributed.HashStore(), tmp_path, lost=30, still=50)
    for rank in range(2):
        watch.store.set(f"beat/{rank}", json.dumps(HERE._replace(cut="reset by peer")))
    assert watch.look() is None
    stand_still(watch, 60)
    assert watch.look() is None
    # Only the others, then.
    stand_still(watch, 60, itself=False)
    assert "rank 0 on n1 (the gradient of step 5), rank 1 on n1" in watch.look()["line"]


def test_a_lost_connection_is_the_network_s_fault_only_if_no_process_fails(tmp_path: Path) -> None:
    watch = Watch(0, 2, distributed.HashStore(), tmp_path)
    watch.store.set("beat/0", json.dumps(HERE._replace(cut="reset by peer")))
    for failed, told in (("no room", False), ("", True)):
        watch.store.set("beat/1", json.dumps(HERE._replace(count=2 + told, failed=failed)))
        watch.look()
        watch.cut_since -= 60
        assert bool(found := watch.look()) == told
    assert found["line"].startswith("rank 0 lost a connection (reset by peer), but all processes still report")


def stand_still(watch: Watch, seconds: float, itself: bool = True) -> None:
    """Let so many seconds pass in which nobody reports; `itself`: nor does the watch look."""
    watch.looked -= seconds * itself
    watch.cut_since -= seconds * itself
    for rank, entry in watch.seen.items():
        watch.seen[rank] = entry._replace(told=entry.told - seconds, further=entry.further - seconds)


def test_a_store_that_is_gone_after_this_process_stood_still_is_told_so(tmp_path: Path) -> None:
    watch = Watch(1, 2, distributed.HashStore(), tmp_path)
    assert watch.without_store(1.0)["line"] == "rank 0 is gone: it no longer answers"
    line = watch.without_store(20.0)["line"]
    assert line.startswith("rank 1 on ")
    assert " itself stood still for 20 s" in line
    watch.done.set()
    assert watch.without_store(20.0) is None


def ranks(folder: Path, dataset: Path, *more: str) -> Ranks:
    """Start three processes of a training as srun does: nobody watches over them."""
    words = [*tiny(dataset), "optimizer=adamw", "schedule=constant", "strategy=ddp", *more]
    words += ["data.global_batch=6", "trainer.max_steps=100000", "trainer.log_every_n_steps=1"]
    return Ranks(3, folder, ["name=a", *words], slurm)


def wait_for_a_step(folder: Path, processes: Ranks) -> None:
    end = time.monotonic() + 200
    while not list(folder.glob("runs/a/metrics/version_0/metrics.csv")):
        assert processes.living(), processes.said()
        assert time.monotonic() < end, "no step within some minutes"
        time.sleep(0.1)


def said(processes: Ranks, *those: int) -> list[str]:
    """Return the lines of errors that some of the processes have printed, when they have ended."""
    for rank in those:
        processes.ranks[rank].wait(90)
    printed = "\n".join(processes.printed(rank).read_text() for rank in those).replace("\r", "\n")
    return [line for line in printed.splitlines() if line.startswith("videodiff train") and "error" in line]


@pytest.mark.parametrize("dead", [2, 0])
def test_a_rank_that_is_killed_ends_the_others_within_a_minute_and_in_one_line(
    tmp_path: Path, world_dataset: Path, dead: int
) -> None:
    processes = ranks(tmp_path, world_dataset)
    others = [rank for rank in range(3) if rank != dead]
    try:
        wait_for_a_step(tmp_path, processes)
        begun = time.monotonic()
        processes.ranks[dead].kill()
        lines = said(processes, *others)
        assert time.monotonic() - begun < 60
    finally:
        processes.kill()
    assert [processes.ranks[rank].returncode for rank in others] == [76, 76], lines
    assert all(f"rank {dead}" in line and " is gone" in line for line in lines), lines
    assert len(lines) == (1 if dead else 2), lines


@pytest.mark.parametrize(
    ("odd", "after", "place"),
    [
        ("Hang", "after the batch of step 4", "on_train_batch_start"),
        ("HangsAtItsStart", "after the start", "on_fit_start"),
    ],
)
def test_a_rank_that_hangs_ends_all_and_the_stacks_say_where(
    tmp_path: Path, world_dataset: Path, odd: str, after: str, place: str
) -> None:
    hang = f"+callbacks.hang._target_=tests.parallel.odd_ranks.{odd}"
    processes = ranks(tmp_path, world_dataset, hang, "callbacks.watchdog.still=10")
    try:
        lines = said(processes, 0, 1, 2)
    finally:
        processes.kill()
    assert [rank.returncode for rank in processes.ranks] == [76, 76, 76], lines
    (line,) = lines
    assert "rank 1 on " in line
    assert f"stands still for 10 s {after}, " in line
    assert f"in {place} (tests/parallel/odd_ranks.py:" in line
    assert "rank 0, 2 waits" in line
    stacks = [(tmp_path / f"runs/a/stacks/rank_{rank}.txt").read_text() for rank in range(3)]
    assert "odd_ranks.py" in stacks[1]
    assert all("odd_ranks.py" not in stacks[rank].split("\n\n", 1)[1] for rank in (0, 2))


def test_a_rank_that_fails_while_it_has_averages_for_weights_waits_for_no_other(
    tmp_path: Path, world_dataset: Path
) -> None:
    words = [*tiny(world_dataset), "optimizer=adamw", "strategy=zero3", "trainer.max_steps=100000", "name=a"]
    words += ["callbacks.samples.every=2", "callbacks.samples.clips=1"]
    processes = Ranks(2, tmp_path, [*words, "+callbacks.fails._target_=tests.parallel.odd_ranks.FailsAlone"], slurm)
    try:
        wait_for_a_step(tmp_path, processes)
        (line,) = said(processes, 0, 1)
    finally:
        processes.kill()
    assert line == "videodiff train (rank 1): error: no room for these clips"
