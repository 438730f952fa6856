"""The watchdog: if a process of a training is gone or hangs, all processes end, and one line names it and its place.

A thread in every process reports to the first process, over a connection of its own, what it is doing and how far it
is. A process that stops to report is gone. A process that reports but makes no progress hangs, or waits for one that
hangs. The first process tells all others what it found; each writes the stacks of its threads and ends. The first one
ends when all others know. A second thread checks that the first process still answers: a machine that loses power, or
freezes, leaves its connections open.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import operator
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerStatus
from torch import distributed

from videodiff.data.storage.causes import first_line, is_of_all_ranks
from videodiff.parallel.launcher import LOST, under_torchrun
from videodiff.parallel.node.parent import PARENT
from videodiff.parallel.ranks import is_lost

# Seconds between two reports of a process.
BEAT_S = 2.0
# Beats without a report after which a process is gone if another one has lost a connection or ends with an error; more
# where a launcher watches the processes of each node: it says within 20 s how one ended.
SILENT, SILENT_LAUNCHED = 5, 15
# Seconds for the main thread to end by itself after a finding; more if it waits for a checkpoint on its way out.
GRACE_S, WAY_OUT_S = 8.0, 30.0
# Calls in which a process waits for others.
WAITING = ("torch/distributed/", "deepspeed/comm/", "torch/autograd/graph.py")
ROOT = Path(__file__).parents[2]


class Beat(NamedTuple):
    """The report of a process: its number of marks, the last mark, and where its main thread is.

    `count` changes with each beat, so that a new beat is recognised. `cut` is the error of a process that lost a
    connection, `failed` that of a process which ends with an error that it prints.
    """

    count: int
    marks: int
    at: str
    where: str
    waits: bool
    host: str
    done: bool = False
    cut: str = ""
    failed: str = ""


class Seen(NamedTuple):
    """The last beat of a process, when it came, and when the process got further."""

    beat: Beat
    told: float
    further: float


class Watch:
    """Watch over the processes of a group; the first one keeps the store.

    A process that does not report for `lost` seconds is gone; if no process passes a mark for `still` seconds, they
    hang. Stacks are written to `folder`. `leaving` says whether an error has ended the training of this process.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        store: Any,
        folder: Path,
        lost: float = 40.0,
        still: float = 1800.0,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.rank, self.world, self.store, self.folder = rank, world, store, folder
        self.lost, self.still, self.leaving = lost, still, leaving
        self.count, self.marks, self.at = 0, 0, "the start"
        self.cut = self.failed = ""
        # A process that never reports is gone too.
        now, never = time.monotonic(), Beat(0, 0, "the start", "", False, "an unknown host")
        self.seen = dict.fromkeys(range(world), Seen(never, now, now))
        self.looked: float | None = None
        self.cut_since: float | None = None
        self.found, self.done = threading.Event(), threading.Event()
        self.answered, self.over = time.monotonic(), threading.Event()
        self.thread = threading.Thread(target=self.talk, daemon=True, name="watchdog")
        self.second = threading.Thread(target=self.watch_first, daemon=True, name="watchdog of rank 0")
        self.ending = threading.Lock()

    def start(self) -> None:
        """Begin to watch; every rank has to call."""
        self.tell()
        self.answered = time.monotonic()
        self.thread.start()
        if self.rank:
            self.second.start()

    def mark(self, at: str) -> None:
        """Record progress of this process: a step, a batch of validation."""
        self.marks, self.at = self.marks + 1, at

    def tell(self) -> None:
        """Report to the first process."""
        self.count += 1
        where, waits = call_of(frames().get(threading.main_thread().ident))
        host = socket.gethostname()
        beat = Beat(self.count, self.marks, self.at, where, waits, host, self.done.is_set(), self.cut, self.failed)
        self.store.set(f"beat/{self.rank}", json.dumps(beat))

    def talk(self) -> None:
        """Report and look, until training is done or something is found."""
        try:
            finding = self.listen()
            if finding is not None and not self.failed:
                self.end(finding)
            elif finding is not None and self.rank == 0:
                self.keep_store(SILENT * BEAT_S)
        finally:
            self.over.set()

    def listen(self) -> dict[str, Any] | None:
        """Return the finding, None when training is done."""
        paused = 0.0
        while True:
            done = self.done.is_set()
            try:
                self.tell()
                if self.rank == 0 and self.failed:
                    self.announce({"line": f"rank 0 ended with an error: {self.failed}", "by": None})
                    self.keep_store(SILENT * BEAT_S)
                    return None
                finding = self.look() if self.rank == 0 else self.heard()
            except (RuntimeError, OSError):
                return self.without_store(paused)
            self.answered = time.monotonic()
            if finding is not None:
                return finding
            if done and (self.rank or all(entry.beat.done for entry in self.seen.values())):
                return None
            if done:
                time.sleep(BEAT_S / 20)
            else:
                self.done.wait(BEAT_S)
            paused = time.monotonic() - self.answered - BEAT_S

    def without_store(self, paused: float) -> dict[str, Any] | None:
        """Return what it means that the store does not answer: the process that keeps it is gone.

        paused: for how many seconds this process itself stood still before it asked.
        """
        if under_torchrun():
            # It names the process that is gone, and ends this one.
            self.done.wait(self.lost)
        if self.done.is_set() or self.failed:
            return None
        line = "rank 0 is gone: it no longer answers"
        if paused > SILENT * BEAT_S:
            # The others may have given this process up, and ended.
            line = f"rank {self.rank} on {socket.gethostname()} itself stood still for {paused:.0f} s"
            line += ", and rank 0 no longer answers: its output may say why"
        return {"line": line, "by": self.rank}

    def watch_first(self) -> None:
        """End this process if the first one does not answer during a call that has no time-out of its own."""
        answered, silent, before = self.answered, 0.0, time.monotonic()
        while not self.over.wait(BEAT_S / 4):
            now = time.monotonic()
            # If this process itself stood still, the first one had no time to answer.
            silent = silent + min(now - before, BEAT_S) if answered == self.answered else 0.0
            answered, before = self.answered, now
            if silent > self.lost and not self.done.is_set() and not self.failed:
                where = os.environ.get("MASTER_ADDR", "127.0.0.1")
                line = f"rank 0 on {where} is gone: no answer for {self.lost:g} s; the last checkpoint is whole"
                self.end({"line": f"{line}, resume=auto goes on", "by": self.rank})
                return

    def heard(self) -> dict[str, Any] | None:
        """Return the finding of the first process, and tell it that this one knows."""
        if not self.store.check(["found"]):
            return None
        finding = json.loads(self.store.get("found"))
        self.store.set(f"knows/{self.rank}", "")
        return finding

    def hear(self) -> float:
        """Take in the last beats of all processes and return the time."""
        now = time.monotonic()
        # If this process itself stood still, the others had no time to be heard.
        late = 0.0 if self.looked is None else max(now - self.looked - 2 * BEAT_S, 0.0)
        self.looked = now
        if self.cut_since is not None:
            self.cut_since += late
        there = [rank for rank in range(self.world) if self.store.check([f"beat/{rank}"])]
        for rank, entry in self.seen.items():
            self.seen[rank] = entry._replace(told=entry.told + late, further=entry.further + late)
        for rank, text in zip(there, self.store.multi_get([f"beat/{rank}" for rank in there]), strict=True):
            beat, before = Beat(*json.loads(text)), self.seen[rank]
            if beat.count != before.beat.count:
                self.seen[rank] = Seen(beat, now, before.further if beat.marks == before.beat.marks else now)
        return now

    def look(self) -> dict[str, Any] | None:
        """Return which processes are gone or hang, and tell the others."""
        now = self.hear()
        running = {rank: entry for rank, entry in self.seen.items() if not entry.beat.done}
        beats = {rank: entry.beat for rank, entry in running.items()}
        cut = {rank: beat.cut for rank, beat in beats.items() if beat.cut}
        failed = {rank: beat.failed for rank, beat in beats.items() if beat.failed}
        if cut and self.cut_since is None:
            self.cut_since = now
        limit = self.limit()
        gone = [rank for rank, entry in running.items() if now - entry.told > limit]
        if said := [rank for rank in gone if rank in failed]:
            finding = {"line": f"rank {said[0]} ended with an error: {failed[said[0]]}", "by": None}
        elif gone:
            finding = {"line": gone_line(gone, beats, limit), "by": 0}
        elif cut and not failed and now - self.cut_since > limit + 2 * BEAT_S:
            finding = {"line": cut_line(cut), "by": 0}
        elif running and all(now - entry.further > self.still for entry in running.values()):
            finding = {"line": still_line(beats, self.still, self.folder), "by": 0}
        else:
            return None
        self.announce(finding)
        return finding

    def limit(self) -> float:
        """Return the seconds without a report after which a process is gone: few if another one met a failure."""
        trouble = any(entry.beat.cut or entry.beat.failed for entry in self.seen.values())
        beats = SILENT_LAUNCHED if PARENT in os.environ else SILENT
        return min(self.lost, beats * BEAT_S) if trouble else self.lost

    def announce(self, finding: dict[str, Any]) -> None:
        """Tell the other processes what was found."""
        self.store.set("found", json.dumps(finding))

    def keep_store(self, silent: float) -> None:
        """Return when all know the finding but those that are silent for so long; the store ends with this process."""
        while True:
            now = self.hear()
            beats = {rank: entry.beat for rank, entry in self.seen.items() if rank and now - entry.told <= silent}
            # One that fails prints its own error and reads no finding.
            there = [rank for rank, beat in beats.items() if not beat.done and not beat.failed]
            if all(self.store.check([f"knows/{rank}"]) for rank in there):
                return
            time.sleep(BEAT_S / 20)

    def outlive_store(self) -> None:
        """Return when the first process has ended: one that ends with an error has to print it before it is ended."""
        end = time.monotonic() + self.lost
        with contextlib.suppress(RuntimeError, OSError):
            while time.monotonic() < end:
                self.store.check(["found"])
                time.sleep(BEAT_S / 4)

    def end(self, finding: dict[str, Any]) -> None:
        """Print the finding, write the stacks of all threads, give the main thread time to end, and end the process.

        A finding by None is known from what another process prints.
        """
        if not self.ending.acquire(blocking=False):
            return
        if finding["by"] == self.rank:
            os.write(2, f"\nvideodiff train: error: {finding['line']}\n".encode())
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"rank_{self.rank}.txt").open("w") as file:
                file.write(f"{finding['line']}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        if self.rank == 0:
            self.keep_store(self.limit())
        elif finding["by"] is None:
            self.outlive_store()
        self.found.set()
        time.sleep(GRACE_S)
        if self.leaving():
            time.sleep(WAY_OUT_S)
        os._exit(LOST)

    def is_cut(self, line: str) -> None:
        """Report that the main thread has lost a connection, with the first line of its error: a process is gone."""
        self.cut = line

    def speaks(self) -> bool:
        """Return whether the watchdog reports the fault, after the main thread has lost a connection."""
        # The first process finds out which one is gone; the others hear of it later, on a loaded machine much later.
        while not self.found.wait(BEAT_S / 4) and not self.over.is_set():
            pass
        return self.found.is_set()

    def fail(self, line: str) -> None:
        """Report that this process ends with an error that it prints itself; the first one lets the others know."""
        self.failed = line
        if self.rank == 0:
            self.done.set()
            self.thread.join()
        else:
            with contextlib.suppress(RuntimeError, OSError):
                self.tell()

    def finish(self) -> None:
        """Report that this process is done; the first one waits for the others, because it keeps the store."""
        self.done.set()
        # The first process finds those that are gone or hang also now; another one could wait for a frozen first one.
        self.thread.join(self.lost if self.rank else None)


def frames() -> dict[int, FrameType]:
    """Return the innermost frame of each thread.

    Until Python 3.12 a collection of garbage that begins inside `_current_frames` can stop the process for good: the
    call holds a lock that other threads want (cpython issue 106883). No thread runs between these three calls.
    """
    automatic, _, found = map(operator.call, (gc.isenabled, gc.disable, sys._current_frames))
    if automatic:
        gc.enable()
    return found


def call_of(frame: FrameType | None) -> tuple[str, bool]:
    """Return a thread's innermost function and innermost line of this project, and whether it waits for others."""
    inner, ours, depth, waits = "", "", 0, False
    while frame is not None and not ours:
        name = frame.f_code.co_filename
        inner = inner or f"{frame.f_code.co_name} ({short(name)}:{frame.f_lineno})"
        waits = waits or (depth < 6 and any(part in name for part in WAITING))
        if Path(name).is_relative_to(ROOT) and "site-packages" not in name:
            ours = f"{short(name)}:{frame.f_lineno}"
        frame, depth = frame.f_back, depth + 1
    return inner + (f" called from {ours}" if ours and ours not in inner else ""), waits


def short(path: str) -> str:
    """Return a path, beginning with its project or package."""
    return path.removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]


def gone_line(gone: Sequence[int], beats: Mapping[int, Beat], lost: float) -> str:
    """Return the line about processes that are gone: which they are, and what they were doing."""
    which = ", ".join(f"rank {rank} on {beats[rank].host} ({beats[rank].at})" for rank in sorted(gone)[:8])
    more = f" and {len(gone) - 8} more" if len(gone) > 8 else ""
    return f"{which}{more} is gone: nothing was heard for {lost:g} s; the last checkpoint is whole, resume=auto goes on"


def cut_line(cut: Mapping[int, str]) -> str:
    """Return the line about processes that lost a connection although all processes report; cut: error by rank."""
    which, first = ", ".join(map(str, sorted(cut)[:8])), min(cut)
    line = f"rank {which} lost a connection ({cut[first]}), but all processes still report"
    return f"{line}: look at the network; the last checkpoint is whole, resume=auto goes on"


def still_line(beats: Mapping[int, Beat], still: float, folder: Path) -> str:
    """Return the line about processes that hang: which they are, and where the others wait for them.

    A process that hangs has passed fewer marks than the others. If all have passed the same number, it is the process
    outside a call that waits for others.
    """
    fewest = min(beat.marks for beat in beats.values())
    behind = [rank for rank, beat in beats.items() if beat.marks == fewest]
    if len(behind) == len(beats):
        behind = [rank for rank, beat in beats.items() if not beat.waits] or behind
    first = beats[min(behind)]
    which = f"rank {', '.join(map(str, sorted(behind)[:8]))} on {first.host} stands still"
    line = f"{which} for {still:g} s after {first.at}, in {first.where}"
    others = {rank: beat for rank, beat in beats.items() if rank not in behind}
    if others:
        rank = min(others)
        line += (
            f"; rank {', '.join(map(str, sorted(others)[:8]))} waits after {others[rank].at}, in {others[rank].where}"
        )
    return f"{line}; {folder}/rank_*.txt hold all stacks"


class Watchdog(Callback):
    """Watch the processes of a training: if one is gone or hangs, all end with one line.

    A process that does not report for `lost` seconds is gone; if none makes progress for `still` seconds, they hang.
    `still` must be longer than every normal pause: the start, a save, a validation batch, sampled clips.
    """

    def __init__(self, folder: str | Path, lost: float = 40.0, still: float = 1800.0) -> None:
        self.folder, self.lost, self.still, self.watch = Path(folder), lost, still, None

    def setup(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        # From here on a process can wait for others: for weights, a checkpoint, the first batch.
        if stage == "fit" and trainer.world_size > 1:
            store = open_store(trainer.global_rank, trainer.strategy.broadcast)
            place = trainer.global_rank, trainer.world_size, store, self.folder
            self.watch = Watch(*place, self.lost, self.still, partial(is_leaving, trainer))
            self.watch.start()

    def mark(self, trainer: lightning.Trainer, at: str) -> None:
        """Record progress of this process."""
        if self.watch is not None:
            self.watch.mark(f"{at} of step {trainer.global_step + 1:,}")

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.mark(trainer, "what comes before the batch")

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, index: int) -> None:
        self.mark(trainer, "the batch")

    def on_before_optimizer_step(self, trainer: lightning.Trainer, module: Any, optimizer: Any) -> None:
        self.mark(trainer, "the gradient")

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.mark(trainer, "what comes before the batch")

    def on_validation_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        self.mark(trainer, "validation before the batch")

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        if self.watch is None:
            return
        line = first_line(exception)[:200]
        if is_of_all_ranks(exception):
            self.watch.finish()
        elif not isinstance(exception, RuntimeError) or not is_lost(exception):
            self.watch.fail(line)
        elif not under_torchrun():
            self.watch.is_cut(line)

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        if self.watch is not None:
            self.watch.finish()
            self.watch = None


def is_leaving(trainer: lightning.Trainer) -> bool:
    """Return whether an error has ended the training of this process."""
    return trainer.state.status == TrainerStatus.INTERRUPTED


def open_store(rank: int, broadcast: Any) -> Any:
    """Return the watchdog's own store, which the first process keeps; every rank has to call."""
    limit, address = timedelta(seconds=20), os.environ.get("MASTER_ADDR", "127.0.0.1")
    if rank == 0:
        store = distributed.TCPStore(address, 0, None, True, limit, wait_for_workers=False)
        broadcast(store.port)
        return store
    return distributed.TCPStore(address, broadcast(None), None, False, limit, wait_for_workers=False)
