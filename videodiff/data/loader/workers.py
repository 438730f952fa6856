"""Decode in processes that may hang or crash, straight into the memory of whole batches.

A native decoder that hangs can only be stopped by killing its process, so each clip has a time limit and each process
can be replaced. Frames are not sent through pipes: all processes map the same memory, and a worker writes a clip to its
index in the batch. Results depend only on the requested tasks, not on timing, the number of workers or crashes. Linux
only: the memory has no name, so a killed process leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

import numpy as np

from videodiff.data.loader.quarantine import Quarantine, SampleId
from videodiff.data.processes.child import GRACE_S, TICK, Child, Gone, forkserver
from videodiff.words import count_text

READY, BROUGHT = "ready", "brought"
START_S, STARTS = 180.0, 3
# Points against a clip whose worker ended, and the points at which it is quarantined. A disk may be slow once, so a
# clip gets a second try. SIGKILL comes from outside and counts less; when it repeats, the clip exhausts the memory.
SUSPICION, SUSPICION_KILLED, GUILT = 3, 1, 6
# Tasks per worker: the present one, and the next one, which waits in its pipe.
QUEUED = 2
STAND_INS = 1000
# Clips after which a process is replaced: native decoders leak, though only some hundred bytes per clip.
LIFE = 5000


class Task(Protocol):
    """One clip of a batch, small and picklable.

    It has an ascending order, such as (step, position), the identity of its sample, and the shape of its frames,
    `t h w c`.
    """

    @property
    def order(self) -> tuple[int, ...]: ...
    @property
    def sample(self) -> SampleId: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Read(NamedTuple):
    """A batch: frames uint8 `b t h w c`, the result of the function for each clip, and the tasks after replacements.

    The memory of `frames` is reused when no array and no tensor refers to it any more.
    """

    frames: np.ndarray
    rest: list[Any]
    tasks: list[Any]


Function = Callable[[Any, np.ndarray], Any]
StandIn = Callable[[Any, int], Any]


class Slots:
    """Memory shared with the workers, in slots of one batch; a slot is added when all are in use."""

    def __init__(self, slot_bytes: int) -> None:
        self.bytes = -(-slot_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self.file, self.count, self.free, self.maps = os.memfd_create("batches"), 0, deque(), {}

    def __reduce__(self) -> tuple[Any, ...]:
        return open_slots, (reduction.DupFd(self.file), self.bytes)

    def take(self) -> tuple[int, np.ndarray]:
        """Return a free slot and its bytes; the slot is free again when the last view of the bytes is gone."""
        with contextlib.suppress(IndexError):
            return self.lend(self.free.popleft())
        self.count += 1
        os.ftruncate(self.file, self.count * self.bytes)
        return self.lend(self.count - 1)

    def lend(self, slot: int) -> tuple[int, np.ndarray]:
        array = np.frombuffer(self.map(slot), dtype=np.uint8)
        weakref.finalize(array, self.free.append, slot).atexit = False
        return slot, array

    def clip(self, slot: int, place: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return the memory of the clip at index `place` of the batch in a slot."""
        size = int(np.prod(shape))
        return np.frombuffer(self.map(slot), np.uint8, size, place * size).reshape(shape)

    def map(self, slot: int) -> mmap.mmap:
        if slot not in self.maps:
            self.maps[slot] = mmap.mmap(self.file, self.bytes, offset=slot * self.bytes)
        return self.maps[slot]


def open_slots(file: Any, slot_bytes: int) -> Slots:
    """Return the slots of the parent, mapped in a worker."""
    slots = Slots.__new__(Slots)
    slots.file, slots.bytes, slots.maps = file.detach(), slot_bytes, {}
    return slots


class Flight:
    """A batch in progress: its slot, the requested tasks, the present tasks, and the indices still to be read.

    Each index still to be read has one errand, which waits or is with a worker: two never write to the same memory.
    """

    def __init__(self, tasks: Sequence[Task], slot: int, memory: np.ndarray) -> None:
        self.shape, self.slot, self.asked = tuple(tasks[0].shape), slot, list(tasks)
        count, size = len(self.asked), int(np.prod(self.shape))
        self.frames = memory[: count * size].reshape(count, *self.shape)
        self.tasks, self.rest, self.open = list(self.asked), [None] * count, set(range(count))


class Errand(NamedTuple):
    """One clip for one worker; `suspicion` counts the workers that ended while they read this clip."""

    flight: Flight
    place: int
    task: Task
    suspected: int = 0

    def renewed(self) -> Errand:
        """Return the errand with the present task of its index: the task may have been replaced meanwhile."""
        task = self.flight.tasks[self.place]
        return self if task is self.task else Errand(self.flight, self.place, task)


class Worker(Child):
    """A child with its queue of errands, the present one first; `heir`: the child that replaces it when ready."""

    def __init__(self, function: Function, slots: Slots, timeout: float) -> None:
        super().__init__(work, function, slots, timeout, start=forkserver(__name__, function.__module__))
        self.timeout, self.ready, self.errands, self.read = timeout, False, deque(), 0
        # Whether it tells when it has the bytes of a clip, and whether it has those of its present errand.
        self.tells, self.brought = hasattr(function, "bring"), False
        self.heir: Worker | None = None

    def give(self, errand: Errand) -> None:
        """Send an errand to the worker."""
        self.errands.append(errand)
        self.send((errand.task, errand.flight.slot, errand.place))

    def take(self) -> tuple[bool, Any] | None:
        """Return whether the present errand succeeded, and its result or the reason; Gone if the process died.

        None: it has the bytes of the clip now, and the time of the clip begins.
        """
        answer = self.receive()
        self.brought = answer == BROUGHT
        if self.brought:
            return None
        self.read += 1
        return answer

    def limit(self) -> float:
        """Return the time limit of its present errand, in seconds."""
        return self.timeout if self.ready else START_S

    @property
    def leaves(self) -> bool:
        """Return whether it gets no more clips, as it will be replaced."""
        return self.heir is not None and self.heir.ready

    def left(self) -> float:
        """Return the seconds until its time limit; while it waits for bytes, there is none but that of the host."""
        idle = self.ready and (not self.errands or (self.tells and not self.brought))
        return float("inf") if idle else self.limit() - self.spent


def work(connection: Connection, function: Function, slots: Slots, timeout: float) -> None:
    """Read clips until the other end closes."""
    if torch := sys.modules.get("torch"):
        # Many workers share this machine.
        torch.set_num_threads(1)
    connection.send((True, READY))
    bring = getattr(function, "bring", None)
    while True:
        task, slot, place = connection.recv()
        try:
            brought = () if bring is None else (bring(task),)
            if bring is not None:
                connection.send(BROUGHT)
            # A hanging decoder may block the thread that ends this process with its parent. SIGALRM has no handler, so
            # it kills.
            signal.setitimer(signal.ITIMER_REAL, 2 * timeout + TICK)
            answer = True, function(task, slots.clip(slot, place, task.shape), *brought)
        except OSError as error:
            answer = None, error
        except Exception as error:
            answer = False, fault(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)


class Pace(NamedTuple):
    """How far workers read ahead: `ahead` batches, and `queued` tasks per worker.

    `queued` is 1 for large tasks: sending a task that does not fit into the pipe would block until the worker has
    finished the clip before it. `life`: clips after which a process is replaced.
    """

    ahead: int = 2
    queued: int = QUEUED
    life: float = LIFE


EASY = Pace()


class Workers:
    """Processes that read batches with `function(task, out)`: it fills `out` (`t h w c`) and returns the rest.

    `function` can be imported by name or pickled, and never returns None. It may have a `bring(task)`, which waits for
    hosts: it gets the result as third argument, and the time of the clip begins there. `slot_bytes`: bytes of the
    largest batch. `timeout`: seconds per clip. A clip goes into the quarantine if the function raises, if its process
    hangs or crashes twice, or if it is killed six times. `stand_in(task, attempt)` with attempt 1, 2, ... then gives
    replacements of the same shape and order. An OSError is raised, because a failing disk or host is not the fault of a
    clip. Use it in a `with` block, or `close` it.
    """

    def __init__(
        self,
        function: Function,
        workers: int,
        slot_bytes: int,
        stand_in: StandIn,
        quarantine: Quarantine,
        timeout: float = 60.0,
        pace: Pace = EASY,
    ) -> None:
        if workers < 1 or slot_bytes < 1 or timeout <= 0 or pace.ahead < 1:
            raise ValueError(
                f"workers: found workers={workers} slot_bytes={slot_bytes} timeout={timeout} ahead={pace.ahead}, "
                f"expected at least one of each, and a timeout above 0"
            )
        self.function, self.stand_in, self.quarantine = function, stand_in, quarantine
        self.timeout, self.pace, self.slots = timeout, pace, Slots(slot_bytes)
        self.failed_starts, self.waiting, self.flights, self.reading = 0, deque(), deque(), []
        self.pool = [self.hire() for _ in range(workers)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, and the iteration if one is running."""
        for bell, thread in self.reading:
            bell.close()
            thread.join()
        for worker in self.pool:
            worker.end()
        os.close(self.slots.file)

    def hire(self) -> Worker:
        return Worker(self.function, self.slots, self.timeout)

    def batches(self, asked: Iterable[Sequence[Task]]) -> Iterator[Read]:
        """Yield the batches in the order of `asked`; only one iteration may run at a time.

        All tasks of a batch have the same shape. A thread reads ahead and takes tasks from `asked` as it needs them.
        """
        done, (wake, bell) = queue.SimpleQueue(), multiprocessing.Pipe(duplex=False)
        thread = threading.Thread(target=self.run, args=(iter(asked), done, wake), daemon=True)
        thread.start()
        self.reading.append((bell, thread))
        try:
            while (batch := done.get()) is not None:
                if isinstance(batch, BaseException):
                    raise batch
                bell.send_bytes(b"taken")
                yield batch
                # Otherwise this reference would keep the slot in use until the next batch is ready.
                del batch
        finally:
            bell.close()
            thread.join()
            wake.close()
            self.reading.clear()

    def run(self, asked: Iterator[Sequence[Task]], done: queue.SimpleQueue, wake: Connection) -> None:
        """Read batches until `asked` ends or the caller stops; an error is passed on to the caller."""
        try:
            self.serve(asked, done, wake)
            done.put(None)
        except BaseException as error:
            done.put(error)
        # Nobody waits for the clips in progress; the next iteration receives and drops their answers.
        self.flights.clear()
        self.waiting.clear()

    def serve(self, asked: Iterator[Sequence[Task]], done: queue.SimpleQueue, wake: Connection) -> None:
        room, last, more = self.pace.ahead, time.monotonic(), True
        while True:
            # One batch of tasks per round: a task may block until its sample arrives, and answers must be collected.
            if more and len(self.flights) < room:
                tasks = next(asked, None)
                more = tasks is not None
                if more:
                    self.begin(tasks)
            while self.flights and not self.flights[0].open:
                flight = self.flights.popleft()
                done.put(Read(flight.frames, flight.rest, flight.tasks))
                # A finished batch counts as read ahead until the caller takes it.
                room -= 1
                del flight
            if not more and not self.flights:
                return
            self.feed()
            wanting = more and len(self.flights) < room
            pause = 0.0 if wanting else min(TICK, *(worker.left() for worker in self.pool))
            rung = wait([wake, *(worker.connection for worker in self.pool)], max(pause, 0.0))
            now = time.monotonic()
            self.collect(rung, now - last)
            last = now
            if wake in rung:
                try:
                    wake.recv_bytes()
                except EOFError:
                    return
                room += 1

    def begin(self, tasks: Sequence[Task]) -> None:
        """Assign a slot to a batch, and queue its clips."""
        if (size := len(tasks) * int(np.prod(tasks[0].shape))) > self.slots.bytes:
            raise ValueError(f"workers: found a batch of {size} bytes, expected at most slot_bytes={self.slots.bytes}")
        flight = Flight(tasks, *self.slots.take())
        self.flights.append(flight)
        for place in range(len(flight.asked)):
            flight.tasks[place] = self.sound(flight.asked[place])
            self.waiting.append(Errand(flight, place, flight.tasks[place]))

    def feed(self) -> None:
        """Send clips to the workers with room, idle ones first; replace old workers.

        An old worker continues until its heir is ready: a start takes as long as the imports of the main script.
        """
        for worker in list(self.pool):
            if worker.leaves and not worker.errands:
                worker.end()
                self.pool.remove(worker)
            elif worker.read >= self.pace.life and worker.heir is None:
                worker.heir = self.hire()
                self.pool.append(worker.heir)
        for queued in range(self.pace.queued):
            for worker in self.pool:
                if self.waiting and worker.ready and len(worker.errands) == queued and not worker.leaves:
                    worker.give(self.waiting.popleft().renewed())

    def collect(self, rung: list[Any], passed: float) -> None:
        """Receive the answers that have arrived; replace workers that died or exceeded their time limit."""
        for worker in list(self.pool):
            if worker.connection in rung:
                try:
                    answer = worker.take()
                except Gone:
                    reason = f"crashed: {worker.end(GRACE_S)}"
                    killed = worker.process.exitcode == -signal.SIGKILL
                    self.replace(worker, reason, SUSPICION_KILLED if killed else SUSPICION)
                    continue
                if not worker.ready:
                    worker.ready, self.failed_starts = True, 0
                elif answer is not None:
                    self.settle(worker.errands.popleft(), *answer)
            elif worker.errands or not worker.ready:
                worker.charge(passed)
                if worker.left() <= 0 and not worker.connection.poll():
                    worker.end()
                    self.replace(worker, f"timeout: took longer than {worker.limit():g} s")

    def settle(self, errand: Errand, succeeded: bool | None, result: Any) -> None:
        """Store a result, or quarantine the clip; `succeeded` None: an error that is not the clip's fault is raised."""
        if errand.flight not in self.flights:
            return
        if succeeded is None:
            raise result
        if errand.renewed() is not errand:
            self.waiting.appendleft(errand.renewed())
        elif succeeded:
            errand.flight.rest[errand.place] = result
            errand.flight.open.discard(errand.place)
        else:
            self.lose(errand, result)

    def replace(self, worker: Worker, reason: str, suspicion: int = SUSPICION) -> None:
        """Replace a worker that ended; only its present clip is suspected, its queued clips are not."""
        self.failed_starts += not worker.ready
        if self.failed_starts >= STARTS + len(self.pool):
            raise RuntimeError(
                f"workers: found {count_text(self.failed_starts, 'process')} that ended before their first clip: "
                f"{reason}"
            )
        if worker.heir is not None:
            self.pool.remove(worker)
        else:
            new = self.pool[self.pool.index(worker)] = self.hire()
            for other in self.pool:
                other.heir = new if other.heir is worker else other.heir
        for turn, errand in reversed(list(enumerate(worker.errands))):
            if errand.flight not in self.flights:
                continue
            suspected = errand.suspected + suspicion * (turn == 0)
            if suspected < GUILT:
                self.waiting.appendleft(errand._replace(suspected=suspected))
            else:
                self.settle(errand, False, reason)

    def lose(self, errand: Errand, reason: str) -> None:
        """Quarantine a sample and replace it here and at all later positions, so that timing does not matter."""
        lost = errand.task
        self.quarantine.add(lost.sample, lost.order, reason)
        for flight in self.flights:
            for place, other in enumerate(flight.tasks):
                if other.sample == lost.sample and other.order >= lost.order:
                    flight.tasks[place] = self.sound(flight.asked[place])
                    if place not in flight.open:
                        flight.open.add(place)
                        self.waiting.appendleft(Errand(flight, place, flight.tasks[place]))
        self.waiting.appendleft(errand.renewed())

    def sound(self, asked: Task) -> Task:
        return sound(asked, self.stand_in, self.quarantine)


def sound(asked: Task, stand_in: StandIn, quarantine: Quarantine) -> Task:
    """Return the requested task, or the first of its replacements that is not in quarantine."""
    taken = asked
    for attempt in range(1, STAND_INS):
        if not quarantine.holds(taken.sample, asked.order):
            return taken
        taken = stand_in(asked, attempt)
    raise RuntimeError(
        f"quarantine: found all {STAND_INS} replacements of {asked.sample} in it, expected one that can be read"
    )


def fault(error: Exception) -> str:
    """Return the reason for the quarantine as text."""
    return f"{type(error).__name__}: {error}"


def read_here(
    function: Function, asked: Iterable[Sequence[Task]], stand_in: StandIn, quarantine: Quarantine
) -> Iterator[Read]:
    """Yield the same as `Workers.batches`, but read in this process: a decoder that hangs or crashes stops it."""
    for batch in asked:
        frames = np.empty((len(batch), *batch[0].shape), dtype=np.uint8)
        tasks, rest = list(batch), [None] * len(batch)
        for place, first in enumerate(batch):
            while rest[place] is None:
                taken = tasks[place] = sound(first, stand_in, quarantine)
                try:
                    rest[place] = function(taken, frames[place])
                except OSError:
                    raise
                except Exception as error:
                    quarantine.add(taken.sample, first.order, fault(error))
        yield Read(frames, rest, tasks)
