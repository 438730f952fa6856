"""How long torch.compile takes to build the blocks: for the first bucket, and for a bucket of another size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from subjects.denoiser import SMALL, Size, build_ours, noised, step
from subjects.harness import Figure, Settings, figure, ratio, turns
from torch._inductor.utils import fresh_cache

from videodiff.parallel.compile import compile_blocks

TITLE = "Compilation of blocks"


def measure(settings: Settings) -> Iterator[Figure]:
    """Yield seconds to a compiled step by bucket, for both kinds of graphs, and what is gained at each step."""
    first = SMALL._replace(blocks=2, clips=2) if settings.tiny else SMALL._replace(blocks=2)
    second = first._replace(frames=first.frames // 2, side=first.side + 8)
    backend = "eager" if settings.tiny else "inductor"
    _, (eager, _) = both_buckets(first, second)
    for dynamic, kind, key in ((False, "a graph for each", "own"), (None, "one graph for all others", "shared")):
        # A cache on disk would make all but the first measurement of a machine look short.
        with fresh_cache():
            network, works = both_buckets(first, second)
            compile_blocks(network, backend, dynamic=dynamic)
            begun = [seconds(work) for work in works]
            taken = turns({"first": works[0], "second": works[1], "eager": eager}, settings.rounds)
        torch.compiler.reset()
        for number, name in enumerate(("first", "second")):
            spent = [begun[number] - one for one in taken[name]]
            yield figure(f"buckets with {kind}: seconds of compilation for the {name}", spent, f"{key}_{name}_s")
        yield ratio(f"{kind}: a step, times as fast as without", taken["eager"], taken["first"], f"{key}_gain")


def both_buckets(*sizes: Size) -> tuple[torch.nn.Module, list[Callable[[], None]]]:
    """Return a network, and a step of it in each bucket."""
    network, _, _ = build_ours(sizes[0])
    return network, [bucket(network, size) for size in sizes]


def bucket(network: torch.nn.Module, size: Size) -> Callable[[], None]:
    """Return a step of a network with clips of one size."""
    _, tau, condition = build_ours(size)
    z = noised(size)
    return lambda: step(network, lambda: network(z, tau, **condition))


def seconds(work: Callable[[], None]) -> float:
    """Return the seconds that work takes by the clock: the compiler is another process."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
