"""Measure how fast a processor does each operation, in passes of some networks: the figures of a `Cluster`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from videodiff.planning.forecast.trace import FREE, Kind, Watching

# Sizes within this factor share one row of a table.
STEP = 2.0


class Timed(Watching):
    """Records the seconds that this process computed each operation, beside the figures of `Watching`."""

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


# Kind, FLOPs, bytes and seconds of each operation, and the seconds of both passes without a watch.
Timing = tuple[list[tuple[Kind, float, int, float]], float]


class Speed(NamedTuple):
    """Measured speeds of a processor.

    products: FLOPs a second by the width of a product, for half precision (True) and full precision; kinds: bytes a
    second of each operation by its bytes; launch: seconds to start an operation.
    """

    products: Mapping[bool, Mapping[int, float]]
    kinds: Mapping[str, Mapping[int, float]]
    launch: float


def once(network: nn.Module, loss_of: Callable[[], Tensor], rounds: int = 4) -> Timing:
    """Return kind, FLOPs, bytes and seconds of each operation of both passes, and the seconds of both without a watch.

    The quickest round counts, as other load on the machine only adds time.
    """
    plain, each, seen = [], [], Timed()
    for _ in range(rounds):
        for watch in (nullcontext(), seen := Timed()):
            network.zero_grad()
            start = time.thread_time()
            with watch:
                loss_of().backward()
            if watch is not seen:
                plain.append(time.thread_time() - start)
        each.append(seen.seconds)
    seconds = np.min(each[1:], axis=0)
    # The watch itself takes time: as much as it measures for operations that do nothing.
    seconds = np.maximum(seconds - np.median(seconds[[kind.name in FREE for kind in seen.kinds]]), 0.0)
    seconds = seconds * min(1.0, min(plain) / seconds.sum())
    found = [
        (kind, flops, traffic, float(second))
        for kind, (flops, traffic, _, _), second in zip(seen.kinds, seen.figures, seconds, strict=True)
    ]
    return found, min(plain)


def fit(passes: Iterable[Timing]) -> Speed:
    """Return the median speed of the operations of some passes, by kind and size."""
    passes = list(passes)
    rates: dict[bool, dict[int, list[float]]] = {False: {}, True: {}}
    moved: dict[str, dict[int, list[float]]] = {}
    for found, _ in passes:
        for kind, flops, traffic, seconds in found:
            if kind.width and flops and seconds > 0:
                rates[kind.half].setdefault(kind.width, []).append(flops / seconds)
            elif traffic and seconds > 0:
                moved.setdefault(kind.name, {}).setdefault(place(traffic), []).append(traffic / seconds)
    left = [plain - sum(seconds for *_, seconds in found) for found, plain in passes]
    launch = max(0.0, sum(left) / sum(len(found) for found, _ in passes))
    products = {half: medians(table) for half, table in rates.items()}
    return Speed(products, {name: medians(table) for name, table in moved.items()}, launch)


def place(size: float) -> int:
    """Return the row of a table that a size belongs to."""
    return round(STEP ** round(np.log(size) / np.log(STEP)))


def medians(table: Mapping[int, list[float]]) -> dict[int, float]:
    """Return the median of each row."""
    return {at: float(np.median(values)) for at, values in table.items()}
