"""The guard between computing and keeping: what is not finite never reaches weights, moments or averages.

A loss that is not finite makes the gradient NaN on every rank, since gradients are summed over the ranks before a
step. So every rank's engine looks at the norm of the same gradient and decides alike, without a message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

NAMED = 8


class Diverged(ValueError):
    """Training whose weights, or whose loss again and again, are not finite."""


class Taken(NamedTuple):
    """One micro-batch of this rank: the keys of its clips and the loss of each (b,), in step and position order."""

    keys: list[str]
    losses: Tensor


def tell_backward(loss: Tensor) -> Tensor:
    """Return the loss with a gradient that is NaN where the loss is not finite, and else is what it was, to the bit."""
    return loss * (1 + (loss.detach() - loss.detach()))


def finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether the norm of these tensors is a number: no entry is NaN, infinite or beyond 1e19."""
    return bool(torch.isfinite(torch.nn.utils.get_total_norm([t.detach() for t in tensors if t.numel()])))


def suspects(taken: Iterable[Taken]) -> list[str]:
    """Return the keys of the clips whose loss is not finite; of all clips where that is true of none."""
    taken = list(taken)
    bad = [
        key for keys, losses in taken for key, fine in zip(keys, losses.isfinite().tolist(), strict=True) if not fine
    ]
    return bad or [key for keys, _ in taken for key in keys]


def shortened(keys: list[str]) -> str:
    """Return the first keys, and how many more there are."""
    return ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
