"""The cost of a clip for the denoiser, and global batches that give the steps of all buckets equal time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from videodiff.data.order.buckets import Bucket


class Cost(NamedTuple):
    """The cost of a clip: FLOPs of the denoiser's forward pass, and tokens, which memory is proportional to."""

    flops: int
    tokens: int


def batch_sizes(costs: Sequence[Cost], most_tokens: int, shares: int) -> list[int]:
    """Return the global batch of each bucket such that every step takes about equal time.

    A micro-batch of one rank holds at most `most_tokens`. Every global batch is a multiple of `shares` = ranks x
    micro-batches per step. The common time is the largest that fits every bucket into memory; whole clips round it.
    """
    if (largest := max(cost.tokens for cost in costs)) > most_tokens:
        raise ValueError(f"batch.tokens: found {most_tokens}, expected at least {largest}, the largest clip's tokens")
    fit = [most_tokens // cost.tokens for cost in costs]
    time = max(min(clips * cost.flops for clips, cost in zip(fit, costs, strict=True)), *(c.flops for c in costs))
    return [shares * max(1, min(clips, round(time / c.flops))) for clips, c in zip(fit, costs, strict=True)]


class Budget(NamedTuple):
    """The size of a step: `micro_batches` micro-batches over all processes, of at most `tokens` tokens each.

    `cost` returns the cost of a clip of a bucket.
    """

    micro_batches: int
    tokens: int
    cost: Callable[[Bucket], Cost]

    def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        """Return global batches that give the steps of these buckets about equal time."""
        if self.micro_batches < 1:
            raise ValueError(f"data.batch.micro_batches: found {self.micro_batches}, expected at least 1")
        return batch_sizes([self.cost(bucket) for bucket in buckets], self.tokens, self.micro_batches)
