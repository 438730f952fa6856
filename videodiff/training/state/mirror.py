"""Copies of a run's checkpoints in an object store, from which the run can resume if its disk is gone.

    s3://bucket/runs/<name>/config.yaml, overrides.yaml, metrics/...       as in the run folder
    s3://bucket/runs/<name>/checkpoints/step_00000500/...                  checkpoint.json last

A store cannot rename. So the record of a checkpoint, with the checksums of its files, is written last and removed
first: a checkpoint without a record is ignored. A thread of the first process does the work; if the store fails, one
line says so, and the copy is tried again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from videodiff.data.storage.files import inside, partial_of, sync
from videodiff.data.storage.store import Store, StoreError
from videodiff.printing import say
from videodiff.training.state.checkpoint import (
    NAME,
    RECORD,
    CheckpointError,
    checkpoints,
    is_damaged,
    put_in_place,
    read_record,
    step_of,
    whole,
)

CHECKPOINTS, LEFT = "checkpoints", "checkpoint.left.json"
# What another machine needs from a run folder, beside checkpoints, to resume and to show the whole curve: files of
# these kinds in the folder itself, and all files in this subfolder.
KINDS, CURVES = (".yaml", ".txt", ".json", ".jsonl"), "metrics"
# The number of files that are copied at once, and seconds between two attempts at a checkpoint.
AT_ONCE, PAUSE = 4, 60.0


class Mirror:
    """Copies checkpoints of a run to a store, and removes old ones there; `kept` tells which steps stay for good."""

    def __init__(self, url: str, run: Path, keep: int, kept: Callable[[int], bool]) -> None:
        self.run, self.keep, self.kept = run, keep, kept
        self.store = Store(place_of(url, run))
        self.waiting: list[Path] = []
        self.sending: Path | None = None
        # The step that training resumes from; newer checkpoints there belong to a training that was given up.
        self.start = 0
        self.left, self.to_prune, self.ended, self.told = False, False, False, False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.work, name="mirror", daemon=True)

    def begin(self, new: bool) -> None:
        """Begin, for a new or a resumed training; `start` is set before anything is sent.

        A store that can never be written to is an error; for a store that does not answer one line is printed.
        """
        try:
            if new and steps_of(self.store):
                raise ValueError(
                    f"callbacks.checkpoints.mirror: {self.store.url} already holds a run; continue it with "
                    f"resume={self.store.url} or choose another name="
                )
            self.store.write(".writable", b"")
            self.store.remove(".writable")
        except StoreError as error:
            if error.lasting:
                raise ValueError(f"callbacks.checkpoints.mirror: {error}") from error
            self.tell(error)
        self.thread.start()

    def send(self, checkpoint: Path) -> None:
        """Queue a checkpoint for copying; older queued ones that would be removed at once are left out."""
        with self.changed:
            waiting = [*self.waiting, checkpoint]
            newest = waiting[-max(self.keep, 1) :]
            self.waiting = [one for one in waiting if one in newest or self.keep == 0 or self.kept(step_of(one))]
            self.changed.notify()

    def needs(self, step: int) -> bool:
        """Return whether the checkpoint of a step must still be copied, or is being copied."""
        with self.changed:
            return step in map(step_of, [*self.waiting, *filter(None, [self.sending])])

    def prune(self) -> None:
        """Ask the thread to remove old checkpoints from the store."""
        with self.changed:
            self.to_prune = True
            self.changed.notify()

    def finish(self, seconds: float) -> None:
        """Wait until everything is copied, at most so many seconds; report what could not be copied."""
        with self.changed:
            self.ended = True
            self.changed.notify()
        self.thread.join(seconds)
        if self.waiting:
            names = ", ".join(one.name for one in self.waiting)
            say(f"{self.store.url}: {names} could not be copied there; the run folder holds them")

    def work(self) -> None:
        """Copy and remove until training has ended and nothing is left to do."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.to_prune or self.ended)
                one, to_prune = (self.waiting[0] if self.waiting else None), self.to_prune
                if one is None and not to_prune:
                    return
                self.to_prune, self.sending = False, one
            self.left = self.left or self.try_to(self.leave_newer)
            copied = one is not None and self.left and self.try_to(lambda one=one: self.copy(one))
            with self.changed:
                self.sending = None
                if copied:
                    self.waiting = [other for other in self.waiting if other != one]
            if one is not None and not copied and self.pause(one):
                return
            if to_prune:
                self.try_to(self.remove_old)

    def pause(self, failed: Path) -> bool:
        """Wait before the next attempt; return whether training has ended, so that no more attempts are made."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or failed not in self.waiting, PAUSE)
            return self.ended

    def try_to(self, act: Callable[[], None]) -> bool:
        """Run an operation on the store; return whether it succeeded."""
        try:
            act()
        except (OSError, ValueError) as error:
            self.tell(error)
            return False
        self.told = False
        return True

    def tell(self, error: Exception) -> None:
        """Report a failure of the store, once in a row of failures."""
        if not self.told:
            say(f"{error}; training goes on, the checkpoint is copied to the store later")
        self.told = True

    def copy(self, checkpoint: Path) -> None:
        """Copy a checkpoint and the records of its run; the checkpoint's own record comes last."""
        if not checkpoint.is_dir():
            # Training has gone back to an older checkpoint.
            return
        folder = f"{CHECKPOINTS}/{checkpoint.name}"
        names = [*read_record(checkpoint)["files"], RECORD]
        # First remove the record of an earlier checkpoint of this step: meanwhile files of both lie side by side.
        for old in (RECORD, LEFT):
            if f"{folder}/{old}" in self.store.names(folder):
                self.store.remove(f"{folder}/{old}")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: self.store.put(checkpoint / name, f"{folder}/{name}"), names[:-1]))
        for path in sorted([*self.run.glob("*"), *self.run.glob(f"{CURVES}/**/*")]):
            name = path.relative_to(self.run).as_posix()
            if is_record(name) and path.is_file():
                # Some of these files are still growing: their current content is enough.
                self.store.write(name, path.read_bytes())
        self.store.put(checkpoint / RECORD, f"{folder}/{RECORD}")

    def remove_old(self) -> None:
        """Keep the same checkpoints as the run folder; remove leftovers of an interrupted process."""
        there = steps_of(self.store)
        old = [step for step in there[: -self.keep if self.keep else 0] if not self.kept(step)]
        files: dict[str, list[str]] = {}
        for name in self.store.names(CHECKPOINTS):
            files.setdefault(name.split("/")[1], []).append(name)
        for folder, names in files.items():
            ends = {name.rpartition("/")[2] for name in names}
            if NAME.fullmatch(folder) and (not ends & {RECORD, LEFT} or int(folder[5:]) in old):
                for name in sorted(names, key=lambda name: not name.endswith(f"/{RECORD}")):
                    self.store.remove(name)

    def leave_newer(self) -> None:
        """Rename the records of checkpoints newer than the one to resume from, so that no later resume takes them."""
        for step in steps_of(self.store):
            if step > self.start:
                folder = f"{CHECKPOINTS}/{name_of(step)}"
                self.store.write(f"{folder}/{LEFT}", self.store.read(f"{folder}/{RECORD}"))
                self.store.remove(f"{folder}/{RECORD}")
                say(f"{self.store.url}/{folder}: newer than the step that training goes on from, left there as {LEFT}")


def place_of(url: str, run: Path) -> str:
    """Return the place of a run in a store, which has the name of its folder, also where that is called `.`."""
    return f"{url.rstrip('/')}/{os.path.basename(os.path.abspath(run))}"


def name_of(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step_{step:08d}"


def steps_of(store: Store) -> list[int]:
    """Return the steps whose checkpoints in a store have a record, oldest first."""
    try:
        parts = [name.split("/") for name in store.names(CHECKPOINTS)]
    except StoreError as error:
        # A store has no empty folders.
        if error.lasting and isinstance(error.__cause__, FileNotFoundError):
            return []
        raise
    return sorted(int(part[1][5:]) for part in parts if part[2:] == [RECORD] and NAME.fullmatch(part[1]))


def bring(url: str, run: Path, needed: bool = True) -> None:
    """Download a run and its newest whole checkpoint from a store, unless the folder has one as new.

    Every process may call; one at a time downloads. A store without a checkpoint is an error if it is `needed`.
    """
    store = Store(url)
    with alone(run):
        here = max((step_of(one) for one in checkpoints(run) if not is_damaged(one)), default=0)
        try:
            found = steps_of(store)
        except StoreError as error:
            if not here:
                raise
            say(f"{error}; goes on from step {here:,}, which is here")
            return
        if not found and needed and not here:
            raise FileNotFoundError(
                f"resume: found no checkpoint in {store.url}/{CHECKPOINTS}, expected step_*/{RECORD}"
            )
        damaged = None
        for step in reversed([step for step in found if step > here]):
            try:
                bring_checkpoint(store, step, run)
            except (ValueError, StoreError) as error:
                damaged = error
                say(f"{error}; takes the checkpoint before it")
            else:
                say(f"videodiff train: brought {name_of(step)} from {store.url} to {run}")
                return
        if damaged is not None and not here:
            raise CheckpointError(f"{damaged}; no other checkpoint of {store.url} is whole")


def bring_checkpoint(store: Store, step: int, run: Path) -> None:
    """Download one checkpoint and the records of the run; every file must have its checksum."""
    final = run / CHECKPOINTS / name_of(step)
    partial = partial_of(final)
    folder = f"{CHECKPOINTS}/{final.name}"
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    try:
        bring_file(store, f"{folder}/{RECORD}", partial / RECORD)
        places = {name: inside(partial, name) for name in read_record(partial)["files"]}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: bring_file(store, f"{folder}/{name}", places[name]), places))
        whole(partial)
        records = {name: inside(run, name) for name in filter(is_record, store.names())}
        for name, path in records.items():
            bring_file(store, name, path)
        for parent in {partial, *(path.parent for path in [*places.values(), *records.values()])}:
            sync(parent)
        put_in_place(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def bring_file(store: Store, name: str, path: Path) -> None:
    """Download one file; it takes its name when all of it is on the disk, not only in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        store.get(name, partial)
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def is_record(name: str) -> bool:
    """Return whether a file of a store is one of the records of its run."""
    path = PurePosixPath(name)
    in_folder = len(path.parts) == 1 and path.suffix in KINDS
    return not path.name.startswith(".") and (in_folder or path.parts[0] == CURVES)


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Let only one process at a time download a run; the kernel releases the lock of a process that dies."""
    run.parent.mkdir(parents=True, exist_ok=True)
    with (run.parent / f".{run.name}.brought").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
