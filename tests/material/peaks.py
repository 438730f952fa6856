"""How much memory Python takes for a piece of work."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable


def peak_of(work: Callable[[], object], times: int = 2) -> int:
    """Return the bytes that Python has allocated at most at one moment of the work, the least of some times.

    The least, because Python's table of interned strings, into which pathlib puts every part of a path, belongs to the
    process: where it has grown full it is copied whole, which costs more than the work if many tests ran before.
    """
    peaks = []
    for _ in range(times):
        tracemalloc.start()
        try:
            work()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)
