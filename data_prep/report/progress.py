"""Progress: one line about the phase at hand, written anew on a terminal, every half minute in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, TextIO, TypeVar

from videodiff.report.units import rate_text, size_text, time_text

T = TypeVar("T")
# Seconds over which the rate is taken, seconds between two lines on a terminal and in a log.
WINDOW, TERMINAL, LOG = 300.0, 0.25, 30.0


class Advance(NamedTuple):
    """How far a phase has come.

    total: None where it is not known; counts: `clips` made, bytes `read` and `written`, and by any other name what
    became of the things that are done, in the order in which it is to be told.
    """

    phase: str
    done: int
    total: int | None = None
    unit: str = "inputs"
    counts: Mapping[str, int] = {}


Progress = Callable[[Advance], None]


def silent(step: Advance) -> None:
    """Tell nothing."""


def counted(items: Iterable[T], progress: Progress, phase: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield items and report how many there were so far."""
    number = 0
    for number, item in enumerate(items, 1):
        yield item
        progress(Advance(phase, number, total, unit))
    if not number:
        progress(Advance(phase, 0, total, unit))


class Meter:
    """Write progress to a stream, in a `with` block; a call costs a microsecond and may come for every item.

    A thread of its own writes the lines, so that a log also shows that nothing moves. The rate is that of the last five
    minutes. Each phase leaves its last line behind.
    """

    def __init__(self, stream: TextIO | None = None, every: float | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.every = (TERMINAL if self.live else LOG) if every is None else every
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)
        self.step: Advance | None = None
        self.begun, self.marks = 0.0, deque()

    def __enter__(self) -> Meter:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.ended.set()
        self.thread.join()
        self._leave()

    def __call__(self, step: Advance) -> None:
        with self.lock:
            if self.step is None or step.phase != self.step.phase:
                self._leave()
                self.begun = time.monotonic()
                self.marks = deque([(self.begun, step)])
            self.step = step

    def _tick(self) -> None:
        while not self.ended.wait(self.every):
            with self.lock:
                if self.step is not None:
                    self._write(line(self.step, self._pace(), None), "")

    def _leave(self) -> None:
        """Write the last line of a phase."""
        if self.step is not None:
            took = time.monotonic() - self.begun
            self._write(line(self.step, pace(self.marks[0], (self.begun + took, self.step)), took), "\n")
            self.step = None

    def _pace(self) -> tuple[float, str]:
        now = time.monotonic(), self.step
        self.marks.append(now)
        while len(self.marks) > 2 and now[0] - self.marks[1][0] > WINDOW:
            self.marks.popleft()
        return pace(self.marks[0], now)

    def _write(self, text: str, end: str) -> None:
        if self.live:
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80
            self.stream.write(f"\r{text[: columns - 1]}\x1b[K{end}")
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()


def pace(before: tuple[float, Advance], now: tuple[float, Advance]) -> tuple[float, str]:
    """Return how many things, and in words how many clips, were done a second between two moments."""
    seconds = max(now[0] - before[0], 1e-9)
    things = (now[1].done - before[1].done) / seconds
    if "clips" not in now[1].counts:
        return things, f"{rate_text(things)} {now[1].unit}/s"
    clips = now[1].counts["clips"] - before[1].counts.get("clips", 0)
    return things, f"{rate_text(clips / seconds)} clips/s"


def line(step: Advance, pace: tuple[float, str], took: float | None) -> str:
    """Return progress as a line; `took` is None while the phase goes on."""
    counts = {name: count for name, count in step.counts.items() if name not in ("clips", "read", "written")}
    of = "" if step.total is None else f" of {step.total:,}"
    share = f" ({100 * step.done / step.total:.0f} %)" if step.total else ""
    parts = [f"{step.done:,}{of} {step.unit}{share}", pace[1]]
    parts += [f"{size_text(step.counts[name])} {name}" for name in ("read", "written") if name in step.counts]
    parts += [f"{count:,} {name}" for name, count in counts.items()]
    if took is not None:
        parts.append(f"in {time_text(took)}")
    elif step.total is not None and pace[0] > 0:
        parts.append(f"{time_text((step.total - step.done) / pace[0])} left")
    return f"{step.phase:<8}{', '.join(parts)}"
