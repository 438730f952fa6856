"""Run a function over many tasks in processes that may hang or crash: native decoders do both.

A thread that hangs cannot be ended, and `concurrent.futures` gives up its whole pool when one process dies; here a
process that exceeds its time is killed, its task is reported lost, and another takes its place.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

READY = "ready"


class Lost(NamedTuple):
    """A task without a result: why, and what was found."""

    reason: str
    detail: str


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

    def take(self, results: dict[int, Any]) -> bool:
        """Store what the process sends; False where it died instead."""
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return False
        if self.ready:
            results[self.task] = answer
        self.ready, self.task = True, None
        return True

    def end(self) -> int | None:
        """Kill the process and return how it ended."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode


def work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer tasks until the other end closes."""
    connection.send(READY)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = function(task)
        except Exception as error:
            answer = Lost("failed", f"{type(error).__name__}: {error}")
        connection.send(answer)


def run_ordered(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, timeout: float
) -> Iterator[Any | Lost]:
    """Yield the results in the order of the tasks, `Lost` for each that raised, crashed or took over `timeout` seconds.

    `function` must be importable by name. At most 16 tasks a worker are begun ahead of the slowest one: results that
    wait for it take memory.
    """
    pool = [Worker(function) for _ in range(min(workers, len(tasks)))]
    waiting, results, emitted = deque(range(len(tasks))), {}, 0
    try:
        while emitted < len(tasks):
            for worker in pool:
                if worker.ready and worker.task is None and waiting and waiting[0] < emitted + 16 * len(pool):
                    number = waiting.popleft()
                    worker.give(number, tasks[number])
            collect(pool, function, results, timeout)
            while emitted in results:
                yield results.pop(emitted)
                emitted += 1
    finally:
        for worker in pool:
            worker.end()


def collect(pool: list[Worker], function: Callable[[Any], Any], results: dict[int, Any], timeout: float) -> None:
    """Wait for an answer or a deadline; replace the workers that died or must."""
    deadlines = [worker.since + timeout for worker in pool if worker.task is not None]
    pause = max(min(deadlines) - time.monotonic(), 0.0) if deadlines else None
    answered = wait([worker.connection for worker in pool], pause)
    for place, worker in enumerate(pool):
        alive = worker.connection not in answered or worker.take(results)
        late = worker.task is not None and time.monotonic() - worker.since > timeout
        if alive and not late:
            continue
        code = worker.end()
        if not worker.ready:
            raise RuntimeError(f"a worker process ended with exit code {code} before its first task")
        if worker.task is not None and alive:
            results[worker.task] = Lost("timeout", f"took longer than {timeout:g} s and was killed")
        elif worker.task is not None:
            results[worker.task] = Lost("crashed", f"the process ended with exit code {code}")
        pool[place] = Worker(function)
