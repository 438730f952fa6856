"""Local: the engine that works in processes of this machine; and `Engine`, the interface of every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from videodiff.data.processes.pool import Answers, run
from videodiff.machine import cores


class Node(NamedTuple):
    """The machine of a task: a folder on its disk, and the address of the `Keeper` if several machines work."""

    scratch: Path
    keeper: str | None = None


class Assignment(NamedTuple):
    """Tasks for worker processes.

    function(task, node): importable by name; returns an answer or yields several. folders: every machine must see them;
    the first is the work folder. workers: processes in all, None for as many as fit; timeout: seconds for a task; gpus:
    of each process.
    """

    function: Callable[[Any, Node], Any]
    tasks: Sequence[Any]
    folders: Sequence[str | Path]
    workers: int | None
    timeout: float
    gpus: float = 0.0


class Engine(Protocol):
    """What runs tasks in processes that may hang or crash."""

    def run(self, work: Assignment) -> Iterator[Answers]:
        """Yield the answers to all tasks as they come, in lists, see `pool.run`.

        A task may run twice; the answers of one run only are given. Memory grows with the number of workers, not with
        the number of tasks.
        """


class Local:
    """Processes of this machine, which all see all its GPUs."""

    def run(self, work: Assignment) -> Iterator[Answers]:
        """See `Engine`; without `workers` there is one process a core, or a single one that uses a GPU."""
        workers = work.workers or (1 if work.gpus else cores())
        return run(partial(work.function, node=Node(Path(work.folders[0]))), work.tasks, workers, work.timeout)
