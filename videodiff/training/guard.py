"""The guard between computing and keeping: no gradient that is not finite, or a spike, reaches weights and averages.

A loss that is not finite makes the gradient NaN on every rank, since gradients are summed over the ranks before a
step. So every rank's engine looks at the norm of the same gradient and decides alike, without a message.

A spike is a gradient whose norm is many times the median of the norms before it: one bad batch, or the first step of a
divergence. A step that is left out costs a batch; one that is taken can cost days.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor

NAMED = 8


class Diverged(ValueError):
    """Raised when weights, or too many losses, are not finite; `rollback`: where training can go on."""

    def __init__(self, why: str, rollback: Any = None) -> None:
        super().__init__(why)
        self.rollback = rollback


class Taken(NamedTuple):
    """One micro-batch of this rank: the keys of its clips and the loss of each (b,), in step and position order."""

    keys: list[str]
    losses: Tensor


class Spikes:
    """The largest norm that the next gradient may have: `factor` times the median of the last `history` norms.

    There is no limit before `history` norms are known, or if `factor` is None. The norms of skipped steps count too, so
    that the limit follows gradients that have grown for good.
    """

    def __init__(self, factor: float | None, history: int) -> None:
        self.factor, self.norms = factor, deque[float](maxlen=history)

    def limit(self) -> float:
        """Return the limit of the next step."""
        if self.factor is None or len(self.norms) < self.norms.maxlen:
            return math.inf
        return self.factor * statistics.median(self.norms)

    def add(self, norm: float | None) -> None:
        """Add a norm; one that is unknown or not finite is ignored."""
        if norm is not None and math.isfinite(norm):
            self.norms.append(norm)

    def restore(self, norms: Sequence[float]) -> None:
        """Take over the norms of a checkpoint."""
        self.norms.clear()
        self.norms.extend(map(float, norms))


def tell_backward(loss: Tensor) -> Tensor:
    """Return the loss; its gradient is NaN if the loss is not finite, and otherwise unchanged, to the bit."""
    return loss * (1 + (loss.detach() - loss.detach()))


def prove(trainer: lightning.Trainer) -> None:
    """Have the guard look at the weights before something keeps them; every rank has to call."""
    for callback in trainer.callbacks:
        getattr(callback, "prove", lambda _: None)(trainer)


def finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether the norm of these tensors is finite: no entry is NaN, infinite or beyond 1e19."""
    return bool(torch.nn.utils.get_total_norm(tensors).isfinite())


def suspects(taken: Iterable[Taken]) -> list[str]:
    """Return the keys of the clips without a finite loss; the keys of all clips if every loss is finite."""
    taken = list(taken)
    bad = [
        key for keys, losses in taken for key, fine in zip(keys, losses.isfinite().tolist(), strict=True) if not fine
    ]
    return bad or [key for keys, _ in taken for key in keys]


def shortened(keys: list[str]) -> str:
    """Return the first keys, and how many more there are."""
    return ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
