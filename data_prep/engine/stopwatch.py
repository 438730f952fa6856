"""Stopwatch: how much time this process spends in each stage of the work. Its figures never enter a shard."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple


class Spent(NamedTuple):
    """What a stage took and gave: seconds of one process, things done, bytes read or written."""

    seconds: float = 0.0
    items: int = 0
    bytes: int = 0


class Stopwatch:
    """Seconds, items and bytes by stage; the time of an inner stage does not count for the outer one.

    For one thread only: at every moment exactly one stage is timed.
    """

    def __init__(self) -> None:
        self.spent: dict[str, Spent] = {}
        self.stage, self.since = "", 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block as this stage."""
        before = self.stage
        self._switch(stage)
        try:
            yield
        finally:
            self._switch(before)

    def count(self, stage: str, items: int, size: int = 0) -> None:
        """Note what a stage has done."""
        self.add(stage, Spent(0.0, items, size))

    def take(self) -> dict[str, Spent]:
        """Return what was spent since the last call."""
        self._switch(self.stage)
        taken, self.spent = self.spent, {}
        return taken

    def _switch(self, stage: str) -> None:
        now = time.perf_counter()
        if self.stage:
            self.add(self.stage, Spent(now - self.since))
        self.stage, self.since = stage, now

    def add(self, stage: str, more: Spent) -> None:
        """Add to what a stage took."""
        self.spent[stage] = Spent(*(a + b for a, b in zip(self.spent.get(stage, Spent()), more, strict=True)))


def total(parts: Iterable[Mapping[str, Spent]]) -> dict[str, Spent]:
    """Add up what several told of."""
    watch = Stopwatch()
    for part in parts:
        for stage, spent in part.items():
            watch.add(stage, spent)
    return watch.spent


# One for each process: stages are deep in the calls, and a worker runs one task at a time.
clock = Stopwatch()
