"""Which operations to choose: those of a CPU, where some are written by hand, or those of other devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

# The type of device whose operations are chosen; None: the one that the tensors are on.
TARGET: ContextVar[str | None] = ContextVar("target", default=None)


@contextmanager
def targeting(device: str) -> Iterator[None]:
    """Choose operations as on this type of device: a planner traces what a GPU would run on a machine without one."""
    token = TARGET.set(device)
    try:
        yield
    finally:
        TARGET.reset(token)


def on_cpu(x: Tensor) -> bool:
    """Tell whether the operations of a CPU are the ones to choose."""
    return (TARGET.get() or x.device.type) == "cpu"


def plain(x: Tensor) -> bool:
    """Tell whether to use the plain formulas: under a compiler or forward-mode derivative, or off the CPU."""
    # A compiler looks at nothing behind the first answer.
    return torch.compiler.is_compiling() or not on_cpu(x) or forward_ad._current_level >= 0
