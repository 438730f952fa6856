"""The watchdog: if a process of a training is gone or hangs, all processes end, and one line names it and its place.

A thread in every process reports to the first process, over a connection of its own, what it is doing and how far it
is. A process that stops to report is gone. A process that reports but makes no progress hangs, or waits for one that
hangs. The first process tells all others what it found; each writes the stacks of its threads and ends. A second thread
checks that the first process still answers: a machine that loses power, or freezes, leaves its connections open.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import lightning
from lightning.pytorch.callbacks import Callback
from torch import distributed

from videodiff.parallel.launcher import LOST

# Seconds between two reports of a process, and for the main thread to end by itself after a finding.
BEAT_S, GRACE_S = 2.0, 8.0
# Calls in which a process waits for others.
WAITING = ("torch/distributed/", "deepspeed/comm/", "torch/autograd/graph.py")
ROOT = Path(__file__).parents[2]


class Beat(NamedTuple):
    """The report of a process: its number of marks, the last mark, and where its main thread is.

    `count` changes with each beat, so that a new beat is recognised.
    """

    count: int
    marks: int
    at: str
    where: str
    waits: bool
    host: str
    done: bool = False


class Seen(NamedTuple):
    """The last beat of a process, when it came, and when the process got further."""

    beat: Beat
    told: float
    further: float


class Watch:
    """Watch over the processes of a group; the first one keeps the store.

    A process that does not report for `lost` seconds is gone; if no process passes a mark for `still` seconds, they
    hang. Stacks are written to `folder`.
    """

    def __init__(
        self, rank: int, world: int, store: Any, folder: Path, lost: float = 40.0, still: float = 1800.0
    ) -> None:
        self.rank, self.world, self.store, self.folder = rank, world, store, folder
        self.lost, self.still = lost, still
        self.count, self.marks, self.at = 0, 0, "the start"
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
        where, waits = call_of(sys._current_frames().get(threading.main_thread().ident))
        beat = Beat(self.count, self.marks, self.at, where, waits, socket.gethostname(), self.done.is_set())
        self.store.set(f"beat/{self.rank}", json.dumps(beat))

    def talk(self) -> None:
        """Report and look, until training is done or something is found."""
        try:
            finding = self.listen()
        finally:
            self.over.set()
        if finding is not None:
            self.end(finding)

    def listen(self) -> dict[str, Any] | None:
        """Return the finding, None when training is done."""
        seen: dict[int, Seen] = {}
        while True:
            done = self.done.is_set()
            try:
                self.tell()
                finding = self.look(seen) if self.rank == 0 else self.heard()
            except (RuntimeError, OSError):
                # The process that keeps the store is gone, with everything that it knew.
                return None if done else {"line": "rank 0 is gone: it no longer answers", "by": self.rank}
            self.answered = time.monotonic()
            if finding is not None:
                return finding
            if done and (self.rank or all(entry.beat.done for entry in seen.values())):
                return None
            if done:
                time.sleep(0.1)
            else:
                self.done.wait(BEAT_S)

    def watch_first(self) -> None:
        """End this process if the first one does not answer during a call that has no time-out of its own."""
        while not self.over.wait(BEAT_S / 4):
            if time.monotonic() - self.answered > self.lost and not self.done.is_set():
                where = os.environ.get("MASTER_ADDR", "127.0.0.1")
                line = f"rank 0 on {where} is gone: no answer for {self.lost:g} s; the last checkpoint is whole"
                self.end({"line": f"{line}, resume=auto goes on", "by": self.rank})
                return

    def heard(self) -> dict[str, Any] | None:
        """Return the finding of the first process."""
        return json.loads(self.store.get("found")) if self.store.check(["found"]) else None

    def look(self, seen: dict[int, Seen]) -> dict[str, Any] | None:
        """Return which processes are gone or hang, and tell the others."""
        now = time.monotonic()
        there = [rank for rank in range(self.world) if self.store.check([f"beat/{rank}"])]
        for rank, text in zip(there, self.store.multi_get([f"beat/{rank}" for rank in there]), strict=True):
            beat, before = Beat(*json.loads(text)), seen.get(rank)
            if before is None or beat.count != before.beat.count:
                same = before is not None and beat.marks == before.beat.marks
                seen[rank] = Seen(beat, now, before.further if same else now)
        running = {rank: entry for rank, entry in seen.items() if not entry.beat.done}
        beats = {rank: entry.beat for rank, entry in running.items()}
        gone = [rank for rank, entry in running.items() if now - entry.told > self.lost]
        if gone:
            finding = {"line": gone_line(gone, beats, self.lost), "by": 0}
        elif running and all(now - entry.further > self.still for entry in running.values()):
            finding = {"line": still_line(beats, self.still, self.folder), "by": 0}
        else:
            return None
        self.store.set("found", json.dumps(finding))
        return finding

    def end(self, finding: dict[str, Any]) -> None:
        """Print the finding, write the stacks of all threads, give the main thread time to end, and end the process."""
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
        self.found.set()
        # The first process keeps the store until all others have read it.
        time.sleep(GRACE_S if self.rank == 0 else GRACE_S / 2)
        os._exit(LOST)

    def speaks(self) -> bool:
        """Return whether the watchdog reports the fault, after the main thread has lost a connection."""
        # A process is certainly gone: the one that is silent for some seconds.
        self.lost = min(self.lost, 5 * BEAT_S)
        # The first process finds it; the others hear of it later, on a loaded machine much later.
        if self.found.wait(self.lost + (3 if self.rank == 0 else 10) * BEAT_S) and self.rank == 0:
            time.sleep(2 * BEAT_S)
        return self.found.is_set()

    def finish(self) -> None:
        """Report that this process is done; the first one waits for the others, because it keeps the store."""
        self.done.set()
        self.thread.join(self.lost)


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
    `still` must be longer than every normal pause between two steps: a save, a validation batch, sampled clips.
    """

    def __init__(self, folder: str | Path, lost: float = 40.0, still: float = 1800.0) -> None:
        self.folder, self.lost, self.still, self.watch = Path(folder), lost, still, None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.world_size > 1:
            store = open_store(trainer.global_rank, trainer.strategy.broadcast)
            self.watch = Watch(trainer.global_rank, trainer.world_size, store, self.folder, self.lost, self.still)
            self.watch.start()

    def mark(self, trainer: lightning.Trainer, at: str) -> None:
        """Record progress of this process."""
        if self.watch is not None:
            self.watch.mark(f"{at} of step {trainer.global_step + 1:,}")

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, index: int) -> None:
        self.mark(trainer, "the batch")

    def on_before_optimizer_step(self, trainer: lightning.Trainer, module: Any, optimizer: Any) -> None:
        self.mark(trainer, "the gradient")

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.mark(trainer, "what comes before the batch")

    def on_validation_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        self.mark(trainer, "validation before the batch")

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        if self.watch is not None:
            self.watch.finish()
            self.watch = None


def open_store(rank: int, broadcast: Any) -> Any:
    """Return the watchdog's own store, which the first process keeps; every rank has to call."""
    limit, address = timedelta(seconds=20), os.environ.get("MASTER_ADDR", "127.0.0.1")
    if rank == 0:
        store = distributed.TCPStore(address, 0, None, True, limit, wait_for_workers=False)
        broadcast(store.port)
        return store
    return distributed.TCPStore(address, broadcast(None), None, False, limit, wait_for_workers=False)
