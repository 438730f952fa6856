"""Run a function over many tasks in processes that may hang or crash: native decoders do both.

A thread that hangs cannot be ended, and `concurrent.futures` gives up its whole pool when one process dies; here a
process that exceeds its time is killed, its task is reported lost, and another takes its place.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from videodiff.data.processes.child import GRACE_S, TICK, Child, Gone

Answers = list[tuple[int, Any]]


class Lost(NamedTuple):
    """A task without a result: why, and what was found."""

    reason: str
    detail: str


class Ready(NamedTuple):
    """What a process says when it waits for a task."""


class Worker(Child):
    """A child and the number of the task that it is at; no time is charged before it is ready."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__(work, function)
        self.ready, self.task = False, None

    def give(self, number: int, task: Any) -> None:
        """Hand over a task."""
        self.task, self.spent = number, 0.0
        self.send(task)

    def take(self, answers: Answers) -> None:
        """Store what the process sends; Gone where it died instead."""
        spent = self.spent
        answer = self.receive()
        if isinstance(answer, Ready):
            self.ready, self.task = True, None
        else:
            # The limit is that of the task, not of each of its answers.
            self.spent = spent
            answers.append((self.task, answer))


def work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer tasks until the other end closes; a function that yields gives several answers."""
    while True:
        connection.send(Ready())
        task = connection.recv()
        try:
            answers = function(task)
            for answer in answers if isinstance(answers, Iterator) else (answers,):
                connection.send(answer)
        except Exception as error:
            connection.send(Lost("failed", f"{type(error).__name__}: {error}"))


def run(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    workers: int,
    timeout: float,
    ahead: Callable[[], float] = lambda: math.inf,
) -> Iterator[Answers]:
    """Yield the answers as they come, each with the number of its task: all that a task yields, or what it returns.

    `function` must be importable by name. A task that raises, crashes or takes over `timeout` seconds has `Lost` as its
    last answer. Only tasks of numbers below `ahead()` are begun.
    """
    pool, begun = [Worker(function) for _ in range(min(workers, len(tasks)))], 0
    try:
        while begun < len(tasks) or any(worker.task is not None for worker in pool):
            for worker in pool:
                if worker.ready and worker.task is None and begun < min(len(tasks), ahead()):
                    worker.give(begun, tasks[begun])
                    begun += 1
            if answers := collect(pool, function, timeout):
                yield answers
    finally:
        for worker in pool:
            worker.end()


def run_ordered(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, timeout: float
) -> Iterator[Any | Lost]:
    """Yield what the function returns, in the order of the tasks, see `run`.

    At most 16 tasks a worker are begun ahead of the slowest one: results that wait for it take memory.
    """
    results, emitted = {}, 0
    with contextlib.closing(run(function, tasks, workers, timeout, lambda: emitted + 16 * workers)) as batches:
        for answers in batches:
            results.update(answers)
            while emitted in results:
                yield results.pop(emitted)
                emitted += 1


def collect(pool: list[Worker], function: Callable[[Any], Any], timeout: float) -> Answers:
    """Return the answers that come within a moment; replace the workers that died or must."""
    busy, begun = [worker for worker in pool if worker.task is not None], time.monotonic()
    pause = min([TICK, *(timeout - worker.spent for worker in busy)]) if busy else None
    answered, answers = wait([worker.connection for worker in pool], None if pause is None else max(pause, 0.0)), []
    for worker in busy:
        worker.charge(time.monotonic() - begun)
    for place, worker in enumerate(pool):
        lost = None
        try:
            if worker.connection in answered:
                worker.take(answers)
            if worker.task is not None and worker.spent >= timeout:
                worker.end()
                lost = Lost("timeout", f"took longer than {timeout:g} s and was killed")
        except Gone:
            how = worker.end(GRACE_S)
            if not worker.ready:
                raise RuntimeError(f"a worker ended before its first task: {how}") from None
            lost = Lost("crashed", how)
        if lost is not None:
            if worker.task is not None:
                answers.append((worker.task, lost))
            pool[place] = Worker(function)
    return answers
