"""Which process iterates which matrix of Muon: arithmetic over shapes alone, so that all processes find the same."""

from __future__ import annotations

from collections.abc import Sequence

Shape = tuple[int, int]
# The FLOPs that take a core of a processor about as long as it takes to gather the results of others.
LEAST = 10**8


def cost(shape: Shape, steps: int = 5) -> int:
    """Return the FLOPs of Muon's iteration on a matrix: three products a step, on its shorter side."""
    low, high = sorted(shape)
    return steps * 2 * low * low * (2 * high + low)


def owners(shapes: Sequence[Shape], processes: int) -> list[int]:
    """Return the process that iterates each matrix: the costliest matrices first, each by who has least to do.

    No process has more to do than its even share and one matrix (Graham 1969, longest processing time first).
    """
    load, found = [0] * processes, [0] * len(shapes)
    for index in sorted(range(len(shapes)), key=lambda index: -cost(shapes[index])):
        found[index] = min(range(processes), key=lambda process: load[process])
        load[found[index]] += cost(shapes[index])
    return found


def held(shapes: Sequence[Shape], processes: int) -> list[list[int]]:
    """Return the indices of the matrices that each process iterates."""
    found = owners(shapes, processes)
    return [[index for index, owner in enumerate(found) if owner == process] for process in range(processes)]


def worth_sharing(shapes: Sequence[Shape], processes: int) -> bool:
    """Return whether processes that hold the same matrices save more time than a gather takes if they share them."""
    costs = [cost(shape) for shape in shapes]
    most = max(sum(costs[index] for index in indices) for indices in held(shapes, processes))
    return sum(costs) - most >= LEAST


def rows(count: int, processes: int) -> list[int]:
    """Return how many of `count` rows each process holds where a matrix is split: full parts, then what is left."""
    part = -(-count // processes)
    return [max(0, min(part, count - process * part)) for process in range(processes)]
