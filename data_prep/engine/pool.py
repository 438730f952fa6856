"""Run a function over many tasks in processes that may hang or crash: native decoders do both.

A thread that hangs cannot be ended, and `concurrent.futures` gives up its whole pool when one process dies; here a
process that exceeds its time is killed, its task is reported lost, and another takes its place.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

Answers = list[tuple[int, Any]]


class Lost(NamedTuple):
    """A task without a result: why, and what was found."""

    reason: str
    detail: str


class Ready(NamedTuple):
    """What a process says when it waits for a task."""


class Worker:
    """One process and the task it is at; time counts from when it is ready, not from its start."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.ready, self.task, self.since = False, None, 0.0

    def give(self, number: int, task: Any) -> None:
        """Hand over a task."""
        self.task, self.since = number, time.monotonic()
        # One that died while idle is found by the next `take`, which sees the end of its connection.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(task)

    def take(self, answers: Answers) -> bool:
        """Store what the process sends; False where it died instead."""
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return False
        if isinstance(answer, Ready):
            self.ready, self.task = True, None
        else:
            answers.append((self.task, answer))
        return True

    def end(self) -> int | None:
        """Kill the process and return how it ended."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode


def work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer tasks until the other end closes; a function that yields gives several answers."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    while True:
        connection.send(Ready())
        try:
            task = connection.recv()
        except EOFError:
            return
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
    """Return the answers that come, at the latest at a deadline; replace the workers that died or must."""
    deadlines = [worker.since + timeout for worker in pool if worker.task is not None]
    pause = max(min(deadlines) - time.monotonic(), 0.0) if deadlines else None
    answered, answers = wait([worker.connection for worker in pool], pause), []
    for place, worker in enumerate(pool):
        alive = worker.connection not in answered or worker.take(answers)
        late = worker.task is not None and time.monotonic() - worker.since > timeout
        if alive and not late:
            continue
        code = worker.end()
        if not worker.ready:
            raise RuntimeError(f"a worker process ended with exit code {code} before its first task")
        if worker.task is not None and alive:
            answers.append((worker.task, Lost("timeout", f"took longer than {timeout:g} s and was killed")))
        elif worker.task is not None:
            answers.append((worker.task, Lost("crashed", f"the process ended with exit code {code}")))
        pool[place] = Worker(function)
    return answers
