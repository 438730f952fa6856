"""The watchdog: where a process of a training is gone or stands still, all end, and one line says which and where.

Every process tells the first one what it is at and how far it is, from a thread and over a connection of its own. The
first one sees who no longer tells anything (the process is gone) and who no longer gets further (it hangs, or waits for
one that hangs). What it finds it tells all; each writes down where its threads are, and ends. A second thread sees
whether the first process still answers: a machine that loses its power, or is frozen, leaves its connections open.
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

# Seconds between two words of a process, and in which its main thread may end by itself what another one has found.
BEAT_S, GRACE_S = 2.0, 8.0
# Where a process is that waits for others.
WAITING = ("torch/distributed/", "deepspeed/comm/", "torch/autograd/graph.py")
ROOT = Path(__file__).parents[2]


class Beat(NamedTuple):
    """What a process says of itself: its marks so far, the last of them, and where its main thread is.

    `count` is another one in each beat, so that a new one is seen to be new.
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

    A process that says nothing for `lost` seconds is gone; where none passes a mark for `still` seconds, they hang.
    Their stacks are written to `folder`.
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
        """Say that this process got further: a step, a batch of validation."""
        self.marks, self.at = self.marks + 1, at

    def tell(self) -> None:
        """Tell the first process what this one is at."""
        self.count += 1
        where, waits = call_of(sys._current_frames().get(threading.main_thread().ident))
        beat = Beat(self.count, self.marks, self.at, where, waits, socket.gethostname(), self.done.is_set())
        self.store.set(f"beat/{self.rank}", json.dumps(beat))

    def talk(self) -> None:
        """Tell and look, until training is done or something is found."""
        try:
            finding = self.listen()
        finally:
            self.over.set()
        if finding is not None:
            self.end(finding)

    def listen(self) -> dict[str, Any] | None:
        """Return what is found, None when training is done."""
        seen: dict[int, Seen] = {}
        while True:
            done = self.done.is_set()
            try:
                self.tell()
                finding = self.look(seen) if self.rank == 0 else self.heard()
            except (RuntimeError, OSError):
                # The one that keeps the store is gone, and with it whatever it knew.
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
        """End this process where the first one keeps silent within a call that has no time-out of its own."""
        while not self.over.wait(BEAT_S / 4):
            if time.monotonic() - self.answered > self.lost and not self.done.is_set():
                where = os.environ.get("MASTER_ADDR", "127.0.0.1")
                line = f"rank 0 on {where} is gone: no answer for {self.lost:g} s; the last checkpoint is whole"
                self.end({"line": f"{line}, resume=auto goes on", "by": self.rank})
                return

    def heard(self) -> dict[str, Any] | None:
        """Return what the first process has found."""
        return json.loads(self.store.get("found")) if self.store.check(["found"]) else None

    def look(self, seen: dict[int, Seen]) -> dict[str, Any] | None:
        """Return which processes are gone or stand still, and tell the others."""
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
        """Say what was found, write down where all threads are, let the main thread end if it can, and end."""
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
        # Until all have heard it, the first one keeps the store.
        time.sleep(GRACE_S if self.rank == 0 else GRACE_S / 2)
        os._exit(LOST)

    def speaks(self) -> bool:
        """Tell whether it is said what is wrong, now that the main thread has lost a connection."""
        # Somebody is gone for certain: who is silent for some seconds is it.
        self.lost = min(self.lost, 5 * BEAT_S)
        # The first one finds it; the others hear of it a little later, much later on a loaded machine.
        if self.found.wait(self.lost + (3 if self.rank == 0 else 10) * BEAT_S) and self.rank == 0:
            time.sleep(2 * BEAT_S)
        return self.found.is_set()

    def finish(self) -> None:
        """Say that this process is done; the first one waits for the others, as it keeps the store."""
        self.done.set()
        self.thread.join(self.lost)


def call_of(frame: FrameType | None) -> tuple[str, bool]:
    """Return where a thread is: the innermost function and the innermost line of this project; and whether it waits."""
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
    """Return a path from its project or package on."""
    return path.removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]


def gone_line(gone: Sequence[int], beats: Mapping[int, Beat], lost: float) -> str:
    """Return which processes are gone, and what they were at."""
    which = ", ".join(f"rank {rank} on {beats[rank].host} ({beats[rank].at})" for rank in sorted(gone)[:8])
    more = f" and {len(gone) - 8} more" if len(gone) > 8 else ""
    return f"{which}{more} is gone: nothing was heard for {lost:g} s; the last checkpoint is whole, resume=auto goes on"


def still_line(beats: Mapping[int, Beat], still: float, folder: Path) -> str:
    """Return which processes stand still, and where the others wait for them.

    Who hangs has passed fewer marks than the others. Where all have passed as many, it is who is not within a call that
    waits for the others.
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
    """Watch over the processes of a training: a process that is gone or stands still ends all, in one line.

    One that says nothing for `lost` seconds is gone; where no process gets further for `still` seconds, they hang. The
    longest pause between two steps that is no hang must be shorter: a save, a validation batch, sampled clips.
    """

    def __init__(self, folder: str | Path, lost: float = 40.0, still: float = 1800.0) -> None:
        self.folder, self.lost, self.still, self.watch = Path(folder), lost, still, None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.world_size > 1:
            store = open_store(trainer.global_rank, trainer.strategy.broadcast)
            self.watch = Watch(trainer.global_rank, trainer.world_size, store, self.folder, self.lost, self.still)
            self.watch.start()

    def mark(self, trainer: lightning.Trainer, at: str) -> None:
        """Say that this process got further."""
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
    """Return a store of the watchdog's own, kept by the first process; every rank has to call."""
    limit, address = timedelta(seconds=20), os.environ.get("MASTER_ADDR", "127.0.0.1")
    if rank == 0:
        store = distributed.TCPStore(address, 0, None, True, limit, wait_for_workers=False)
        broadcast(store.port)
        return store
    return distributed.TCPStore(address, broadcast(None), None, False, limit, wait_for_workers=False)
