"""Compare a loader with the decode ceiling: as many plain processes read the same clips and drop them."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from videodiff.data.loader.clips import Reader, Task
from videodiff.data.processes.child import Child

ROUNDS = 3


class Throughput(NamedTuple):
    """Clips a second: of the loader, and of the plain processes."""

    loader: float
    ceiling: float


def measure(
    loader: Iterable[dict[str, Any]], reader: Reader, tasks: Sequence[Task], workers: int, seconds: float
) -> Throughput:
    """Measure both rates in alternation for `seconds` in all, after a warm-up: the speed of a machine changes.

    `tasks` are clips in the loader's order, `workers` is its number of processes (0: this one).
    """
    share, batches = seconds / (2 * ROUNDS), iter(loader)
    with bare_processes(reader, tasks, workers) as ceiling:
        next(batches), ceiling(0.0)
        rates = [(rate((len(batch["key"]) for batch in batches), share), ceiling(share)) for _ in range(ROUNDS)]
    loaded, bare = (float(np.median(column)) for column in zip(*rates, strict=True))
    return Throughput(loaded, bare)


def rate(counts: Iterator[int], seconds: float) -> float:
    """Return the items per second, counted for at least `seconds`."""
    start, found = time.perf_counter(), 0
    for count in counts:
        found += count
        if (passed := time.perf_counter() - start) >= seconds:
            return found / passed
    raise ValueError("throughput: found the end of the batches, expected them to go on")


def clips(reader: Reader, tasks: Sequence[Task]) -> Iterator[int]:
    """Read clips endlessly and drop them; yield 1 for each."""
    outs: dict[tuple[int, ...], np.ndarray] = {}
    for task in itertools.cycle(tasks):
        reader(task, outs.setdefault(task.shape, np.empty(task.shape, dtype=np.uint8)))
        yield 1


@contextlib.contextmanager
def bare_processes(reader: Reader, tasks: Sequence[Task], workers: int) -> Iterator[Callable[[float], float]]:
    """Return a function that lets the processes read for some seconds and returns their total rate."""
    if not workers:
        endless = clips(reader, tasks)
        yield lambda seconds: rate(endless, seconds)
        return
    children = [Child(bare, reader, tasks[number % len(tasks) :: workers]) for number in range(workers)]

    def together(seconds: float) -> float:
        for child in children:
            child.send(seconds)
        return sum(child.receive() for child in children)

    try:
        yield together
    finally:
        for child in children:
            child.end()


def bare(connection: Connection, reader: Reader, tasks: Sequence[Task]) -> None:
    """Read a share of the clips in a child process; for each request of some seconds send the rate."""
    import torch

    torch.set_num_threads(1)
    endless = clips(reader, tasks)
    while True:
        connection.send(rate(endless, connection.recv()))
