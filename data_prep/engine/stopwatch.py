"""Stopwatch: how much time this process spends in each operation: fetch, decode, score, encode, write, pack.

These figures never enter a shard.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple


class Spent(NamedTuple):
    """The cost and the yield of an operation: seconds of one process, finished items, bytes read or written."""

    seconds: float = 0.0
    items: int = 0
    bytes: int = 0


class Stopwatch:
    """Seconds, items and bytes by operation; the time of an inner operation does not count for the outer one.

    For one thread only: at every moment exactly one operation is timed.
    """

    def __init__(self) -> None:
        self.spent: dict[str, Spent] = {}
        self.operation, self.since = "", 0.0

    @contextmanager
    def __call__(self, operation: str) -> Iterator[None]:
        """Time the block as this operation."""
        before = self.operation
        self._switch(operation)
        try:
            yield
        finally:
            self._switch(before)

    def count(self, operation: str, items: int, size: int = 0) -> None:
        """Add items and bytes to an operation."""
        self.add(operation, Spent(0.0, items, size))

    def take(self) -> dict[str, Spent]:
        """Return the figures since the last call, and begin anew."""
        self._switch(self.operation)
        taken, self.spent = self.spent, {}
        return taken

    def _switch(self, operation: str) -> None:
        now = time.perf_counter()
        if self.operation:
            self.add(self.operation, Spent(now - self.since))
        self.operation, self.since = operation, now

    def add(self, operation: str, more: Spent) -> None:
        """Add to the figures of an operation."""
        self.spent[operation] = Spent(*(a + b for a, b in zip(self.spent.get(operation, Spent()), more, strict=True)))


def total(parts: Iterable[Mapping[str, Spent]]) -> dict[str, Spent]:
    """Add up the figures of several processes."""
    watch = Stopwatch()
    for part in parts:
        for operation, spent in part.items():
            watch.add(operation, spent)
    return watch.spent


# Each process has one: operations lie deep in the calls, and a worker runs one task at a time.
clock = Stopwatch()
