"""Quarantine: the samples that cannot be read. Each gets a line of JSON, they have a budget, and they are run state."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from videodiff.words import count_text


class SampleId(NamedTuple):
    """The identity of a sample: its shard, key, offset in the shard, and the index of its dataset."""

    shard: str
    key: str
    offset: int
    dataset: int = 0


class Loss(NamedTuple):
    """Where in the order a sample first could not be read, and why."""

    order: tuple[int, ...]
    reason: str


class QuarantineError(RuntimeError):
    """Raised when more samples than allowed cannot be read."""


class Quarantine:
    """The samples that could not be read so far; the run ends when this process adds more than `budget`.

    A sample is quarantined from the step and position where it first failed. Earlier steps keep it, also when the run
    resumes there: a batch depends only on the order, not on when a fault was noticed. Each new sample is appended to
    the file `path` as a line of JSON, and is on disk before a replacement is used; None writes no file.
    """

    def __init__(self, path: str | Path | None = None, budget: int = 100) -> None:
        self.path, self.budget = None if path is None else Path(path), budget
        self.losses: dict[SampleId, Loss] = {}
        self.before = 0

    def holds(self, sample: SampleId, order: tuple[int, ...]) -> bool:
        """Return whether a sample is quarantined at a step and position."""
        return sample in self.losses and self.losses[sample].order <= order

    def add(self, sample: SampleId, order: tuple[int, ...], reason: str) -> None:
        """Quarantine a sample from a step and position on; QuarantineError with a summary if there are too many."""
        known = self.losses.get(sample)
        if known is None and self.path is not None:
            append_line(self.path, {**sample._asdict(), "order": order, "reason": reason})
        if known is None or order < known.order:
            self.losses[sample] = Loss(order, reason)
        if len(self.losses) - self.before > self.budget:
            raise QuarantineError(self.summary())

    def summary(self) -> str:
        """Return one line: how many samples are quarantined, and the most frequent reasons and shards."""
        reasons = Counter(loss.reason.partition(":")[0] for loss in self.losses.values())
        shards = Counter(sample.shard for sample in self.losses)
        sample, loss = max(self.losses.items(), key=lambda item: item[1].order)
        what = most(reasons), most(shards), *([f"{self.before} before this start"] if self.before else [])
        return (
            f"quarantine: found {count_text(len(self.losses), 'sample')} that cannot be read ({'; '.join(what)}), "
            f"expected at most {self.before + self.budget}; the last one: {sample.shard}: {sample.key}: {loss.reason}"
            + (f"; all of them: {self.path}" if self.path else "")
        )

    def state_dict(self) -> list[list[Any]]:
        """Return shard, key, offset, dataset, order and reason of each sample, as plain values."""
        return [[*sample, list(loss.order), loss.reason] for sample, loss in list(self.losses.items())]

    def load_state_dict(self, state: Iterable[list[Any]]) -> None:
        """Add the samples of a state; the states of several ranks may be loaded one after another."""
        for *sample, order, reason in state:
            sample, loss = SampleId(*sample), Loss(tuple(order), reason)
            self.losses[sample] = min(loss, self.losses.get(sample, loss))
        self.before = len(self.losses)


def most(counts: Counter[str]) -> str:
    """Return the three largest counts as text."""
    named = ", ".join(f"{count} {name}" for name, count in counts.most_common(3))
    return named + (f", {len(counts) - 3} more" if len(counts) > 3 else "")


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a line of JSON in one write and flush it to disk; ranks may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
