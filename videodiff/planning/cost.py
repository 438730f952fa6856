"""What a clip costs the denoiser, and the global batches with which the steps of all buckets take equal time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from videodiff.data.order.buckets import Bucket


class Cost(NamedTuple):
    """What a clip takes: FLOPs of the denoiser's forward pass, and tokens, to which its memory is proportional."""

    flops: int
    tokens: int


def forward_flops(
    time: int,
    space: int,
    width: int,
    axes: Sequence[str],
    mlp_ratio: float = 4.0,
    text: int = 0,
    text_width: int = 0,
    patch: int = 0,
) -> int:
    """Return the FLOPs of a denoiser for one clip of `time` x `space` tokens and `text` words of `text_width`.

    `axes` names for each block what it attends over: space, time or spacetime. `patch`: the numbers that a token is
    made of. A multiply-add counts two. With neither words' width nor patch it is the FLOPs of the blocks alone.
    """
    tokens, seen = time * space, {"space": space, "time": time, "spacetime": time * space}
    # By token: query, key, value and output; query and output to the text; two layers of the feed-forward part.
    linear = tokens * (8 + 4 + 4 * mlp_ratio) * width**2 + text * 4 * width**2
    blocks = sum(linear + 4 * tokens * (seen[axis] + text) * width for axis in axes)
    if not patch:
        return int(blocks)
    # Tokens in and out, words, the noise level of each frame with its modulation, and the frame rate.
    words, levels = 2 * text * (text_width + width) * width, 2 * (256 + width) * width
    return int(blocks + 4 * tokens * patch * width + words + (time + 1) * levels + time * 12 * width**2)


def batch_sizes(costs: Sequence[Cost], most_tokens: int, shares: int) -> list[int]:
    """Return the global batch of each bucket such that every step takes about equal time.

    A micro-batch of one rank holds at most `most_tokens`; `shares` is ranks x micro-batches a step, and every batch is
    a multiple of it. The time is the least that fills some bucket's memory; a bucket is as near to it as whole clips
    allow.
    """
    if (largest := max(cost.tokens for cost in costs)) > most_tokens:
        raise ValueError(f"batch.tokens: found {most_tokens}, expected at least {largest}, one clip of every bucket")
    fit = [most_tokens // cost.tokens for cost in costs]
    time = max(min(clips * cost.flops for clips, cost in zip(fit, costs, strict=True)), *(c.flops for c in costs))
    return [shares * max(1, min(clips, round(time / c.flops))) for clips, c in zip(fit, costs, strict=True)]


class Budget(NamedTuple):
    """A step is `micro_batches` micro-batches, those of all processes together, of at most `tokens` tokens each.

    `cost` tells what a clip of a bucket takes.
    """

    micro_batches: int
    tokens: int
    cost: Callable[[Bucket], Cost]

    def sizes(self, buckets: Sequence[Bucket]) -> list[int]:
        """Return the global batches with which steps of these buckets take about equal time."""
        if self.micro_batches < 1:
            raise ValueError(f"data.batch.micro_batches: found {self.micro_batches}, expected at least 1")
        return batch_sizes([self.cost(bucket) for bucket in buckets], self.tokens, self.micro_batches)
