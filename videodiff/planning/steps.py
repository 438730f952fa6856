"""The plan of a run: the size and cost of an epoch and a step of each bucket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from videodiff.data.order.buckets import Bucket
from videodiff.data.order.curriculum import Stage
from videodiff.data.order.mixture import Curriculum
from videodiff.planning.cost import Cost


class Planned(NamedTuple):
    """A bucket of a stage: samples per epoch, clips per step and per micro-batch of a process, steps per epoch.

    `cost`: the cost of a clip, None if it is not known.
    """

    first: int
    bucket: Bucket
    samples: Fraction
    global_batch: int
    micro_batch: int
    steps: Fraction
    cost: Cost | None


def plan(
    stages: Sequence[Stage],
    order: Curriculum,
    accumulate: int,
    world: int,
    cost: Callable[[Bucket], Cost] | None = None,
) -> list[Planned]:
    """Return the plan of each bucket of each stage, on `world` processes."""
    found = []
    for stage, mixture in zip(stages, order.stages, strict=True):
        for number, (bucket, size) in enumerate(zip(mixture.buckets, mixture.batch_sizes, strict=True)):
            pairs = zip(mixture.datasets, mixture.streams, strict=True)
            samples = Fraction(sum(data.repeat * stream.samples[number] for data, stream in pairs))
            micro = size // (accumulate * world)
            spent = cost(bucket) if cost else None
            found.append(Planned(stage.first, bucket, samples, size, micro, samples / size, spent))
    return found


def format_plan(planned: Sequence[Planned]) -> str:
    """Return the plan as a table; the FLOPs of a step count both passes, times are relative."""
    head = ["from step", "bucket", "samples an epoch", "clips a step", "a micro-batch", "steps an epoch"]
    rows = [
        [
            f"{p.first:,}",
            f"{p.bucket}",
            *(f"{n:,}" for n in (round(p.samples), p.global_batch, p.micro_batch)),
            f"{float(p.steps):,.1f}",
        ]
        for p in planned
    ]
    if all(p.cost for p in planned):
        head += ["tokens", "TFLOP a step", "time"]
        longest = {p.first: max(q.cost.flops * q.global_batch for q in planned if q.first == p.first) for p in planned}
        for row, p in zip(rows, planned, strict=True):
            flops = p.cost.flops * p.global_batch
            row += [f"{p.cost.tokens * p.micro_batch:,}", f"{3 * flops / 1e12:,.3g}", f"{flops / longest[p.first]:.0%}"]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in [head, *rows])
