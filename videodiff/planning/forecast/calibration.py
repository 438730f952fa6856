"""How fast a processor does each operation, from timed passes of some networks: what `Cluster` is to know of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from videodiff.planning.forecast.hardware import table_of
from videodiff.planning.forecast.trace import FREE, Kind, Watching

# Operations whose sizes lie so close to each other are one place of a table.
STEP = 2.0
# Smaller products take as long as their call, and tell nothing of the speed of products.
SMALLEST = 4e6


class Timed(Watching):
    """Writes down of each operation how long this process computed, with what else is known of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        spent: list[float] = []

        def timed(*given: Any, **named: Any) -> Any:
            start = time.thread_time()
            out = operation(*given, **named)
            spent.append(time.thread_time() - start)
            return out

        timed.namespace, timed.overloadpacket = operation.namespace, operation.overloadpacket
        out = super().__torch_dispatch__(timed, types, args, kwargs)
        if len(self.kinds) > len(self.seconds):
            self.seconds += spent
        return out


# Kind, FLOPs, bytes and seconds of each operation, and the seconds of all without a watch.
Timing = tuple[list[tuple[Kind, float, int, float]], float]
# Other work on the machine only ever adds to a time, so a low quantile of the rounds counts.
QUANTILE = 0.25


class Speed(NamedTuple):
    """What was measured: FLOPs a second of products by width, bytes a second of others by size, seconds a launch."""

    tables: Mapping[str, Mapping[int, float]]
    launch: float


class Pace:
    """A fixed work whose time says how fast the machine is at this moment: other jobs slow all work of one moment."""

    def __init__(self) -> None:
        self.a, self.b, self.x = torch.ones(256, 256), torch.ones(256, 1024), torch.ones(1 << 20)

    def __call__(self) -> float:
        """Return the processor seconds of some products and some sums."""
        start = time.thread_time()
        for _ in range(8):
            self.a @ self.b
            self.x + self.x
        return time.thread_time() - start


class Round(NamedTuple):
    """A round of both passes: the watched operations, the seconds of each, and the seconds of all without a watch.

    Seconds are of a machine whose pace takes a second.
    """

    seen: Timed
    each: np.ndarray
    plain: float


def paced(work: Callable[[], Any], pace: Callable[[], float]) -> tuple[float, float]:
    """Return the processor seconds of some work, and the mean pace before and after it."""
    before, start = pace(), time.thread_time()
    work()
    spent = time.thread_time() - start
    return spent, (before + pace()) / 2


def once(network: nn.Module, loss_of: Callable[[], Tensor], pace: Callable[[], float], watched: bool = True) -> Round:
    """Take both passes of a network without a watch, then with one, if it is to be `watched`."""

    def both(watch: AbstractContextManager[Any]) -> None:
        with watch:
            loss_of().backward()

    seen, spent = Timed(), [(0.0, 1.0), (0.0, 1.0)]
    for number, watch in enumerate([nullcontext(), seen][: 1 + watched]):
        network.zero_grad()
        spent[number] = paced(partial(both, watch), pace)
    (plain, slow), (_, then) = spent
    return Round(seen, np.array(seen.seconds) / then, plain / slow)


def settled(rounds: Sequence[Round]) -> Timing:
    """Return kind, FLOPs, bytes and seconds of each operation of both passes, and the seconds of both without a watch.

    The first round does not count.
    """
    seen = rounds[0].seen
    seconds = np.quantile([one.each for one in rounds[1:]], QUANTILE, axis=0)
    whole = float(np.quantile([one.plain for one in rounds[1:]], QUANTILE))
    # The watch takes time of its own: what it finds of operations that do nothing.
    seconds = np.maximum(seconds - np.median(seconds[[kind.name in FREE for kind in seen.kinds]]), 0.0)
    seconds = seconds * min(1.0, whole / seconds.sum())
    found = [
        (kind, flops, traffic, float(second))
        for kind, (flops, traffic, *_), second in zip(seen.kinds, seen.figures, seconds, strict=True)
    ]
    return found, whole


def fit(passes: Iterable[Timing]) -> Speed:
    """Return the speeds of all operations of some passes: the work of those of about one size by their time."""
    passes = list(passes)
    done: dict[str, dict[int, list[float]]] = {}
    for found, _ in passes:
        for kind, flops, traffic, seconds in found:
            work, at = (flops, kind.width) if kind.width else (float(traffic), place(traffic) if traffic else 0)
            if seconds > 0 and work >= (SMALLEST if kind.width else 1):
                sums = done.setdefault(table_of(*kind), {}).setdefault(at, [0.0, 0.0])
                sums[0], sums[1] = sums[0] + work, sums[1] + seconds
    left = [whole - sum(seconds for *_, seconds in found) for found, whole in passes]
    launch = max(0.0, sum(left) / sum(len(found) for found, _ in passes))
    tables = {name: {at: work / spent for at, (work, spent) in sizes.items()} for name, sizes in done.items()}
    return Speed(tables, launch)


def place(size: float) -> int:
    """Return the place of a size in a table."""
    return round(STEP ** round(np.log(size) / np.log(STEP)))
