"""Run a function over many tasks in worker processes that may hang or crash: native decoders do both.

A thread that hangs cannot be killed, and `concurrent.futures` gives up its whole pool when one process dies, and leaves
its processes behind when its own is killed. Here a worker that exceeds its time is killed and replaced, and its task is
reported as lost; all workers end with the process that started them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from videodiff.data.processes.child import GRACE_S, TICK, Child, Gone

Answers = list[tuple[int, Any]]


class Lost(NamedTuple):
    """A task that ended without a result: the class of the reason, and what was found."""

    reason: str
    detail: str


class Ready(NamedTuple):
    """The message of a worker that waits for a task."""


class Worker(Child):
    """A child process and the index of its current task; time counts only after it is ready. nests: see `Child`."""

    def __init__(self, function: Callable[[Any], Any], nests: bool = False) -> None:
        super().__init__(work, function, nests=nests)
        self.ready, self.task, self.nests = False, None, nests

    def give(self, number: int, task: Any) -> None:
        """Hand over a task."""
        self.task, self.spent = number, 0.0
        self.send(task)

    def take(self, answers: Answers) -> None:
        """Append the answer of the process to `answers`; raise Gone if the process died."""
        spent = self.spent
        answer = self.receive()
        if isinstance(answer, Ready):
            self.ready, self.task = True, None
        else:
            # The time limit is for the whole task, not for each of its answers.
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
    nests: bool = False,
) -> Iterator[Answers]:
    """Yield answers as they come, each with the index of its task; a task returns one answer or yields several.

    `function` must be importable by name. If a task raises, crashes or takes over `timeout` seconds, its last answer is
    `Lost`. Only tasks with an index below `ahead()` are started.
    """
    pool, begun = [Worker(function, nests) for _ in range(min(workers, len(tasks)))], 0
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
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, timeout: float, nests: bool = False
) -> Iterator[Any | Lost]:
    """Yield what the function returns, in the order of the tasks; see `run`.

    At most 16 tasks a worker are started ahead of the slowest one: the results that wait for it take memory.
    """
    results, emitted = {}, 0
    with contextlib.closing(run(function, tasks, workers, timeout, lambda: emitted + 16 * workers, nests)) as batches:
        for answers in batches:
            results.update(answers)
            while emitted in results:
                yield results.pop(emitted)
                emitted += 1


def run_all(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, nests: bool = False) -> Iterator[Any]:
    """Yield what the function returns, in the order of the tasks; the first error of a task is raised here."""
    results = run_ordered(partial(attempt, function=function), tasks, workers, math.inf, nests)
    with contextlib.closing(results):
        for task, result in zip(tasks, results, strict=True):
            if isinstance(result, Lost):
                raise ChildProcessError(f"{task}: {result.detail}: memory may have run out")
            if isinstance(result, Exception):
                raise result
            yield result


def attempt(task: Any, function: Callable[[Any], Any]) -> Any:
    """Return what the function returns, or the error that it raises."""
    try:
        return function(task)
    except Exception as error:
        return error


def collect(pool: list[Worker], function: Callable[[Any], Any], timeout: float) -> Answers:
    """Wait a moment for answers and return them; replace workers that died or exceeded their time."""
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
            pool[place] = Worker(function, worker.nests)
    return answers
