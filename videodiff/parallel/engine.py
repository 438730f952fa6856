"""What training asks of whoever holds the weights and takes the steps: one protocol, and who implements it.

`whole.py` implements it where every process holds all weights (a single device, DDP), `zero/engine.py` where ZeRO
splits them, `fsdp/engine.py` where FSDP2 does. Training and the verbs know this file alone; Lightning's strategies run
the forward and backward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from videodiff.parallel.whole import Whole
from videodiff.training.state.pieces import Piece
from videodiff.training.state.saved import Saved

MakeOptimizer = Callable[..., torch.optim.Optimizer]


class Engine(Protocol):
    """One process's part in the steps of a training.

    `split` tells whether the processes hold different weights.
    `limit` is the largest norm of a gradient that a step is taken with; who trains may set it before each step.
    """

    split: bool
    limit: float

    def layout(self, world: int) -> str:
        """Return in words how the state of training lies in `world` processes."""

    def pieces(self, module: nn.Module) -> list[Piece]:
        """Return what this process is to save of weights, buffers and optimizer; all together save each value once."""

    def load(self, module: nn.Module, saved: Saved) -> None:
        """Fill weights, buffers and the optimizer's state from what any topology has saved; every rank has to call."""

    def choose_optimizer(self, make: MakeOptimizer) -> MakeOptimizer:
        """Return the optimizer to build in the place of this one: often the same."""

    def examine_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the gradient before a step; where its norm is not finite or above `limit`, nothing must change."""

    def skipped(self) -> bool:
        """Tell whether the last step changed nothing, because of its gradient; alike on all ranks."""

    def gradient_norm(self) -> float | None:
        """Return the norm of the gradient of the last step, taken or not; None where nobody knows it."""

    def weights(self) -> list[Tensor]:
        """Return the trainable weights that this process holds, or its part of them."""

    def count(self, parameters: Iterable[nn.Parameter]) -> int:
        """Return how many weights these parameters hold when they are whole."""

    def averages(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the whole averages of these parameters by name; every rank has to call."""

    def shape(self, p: nn.Parameter) -> torch.Size:
        """Return the shape that a parameter has when it is whole."""

    def exchanged(self, parameters: Mapping[str, nn.Parameter]) -> AbstractContextManager[None]:
        """Return a context in which the averages stand in the place of these parameters; every rank has to enter."""

    def adopt(self, module: nn.Module) -> None:
        """Take a module over before its optimizer is made, once; where `split`, its denoiser may have no memory yet."""


def engine_of(strategy: Any) -> Engine:
    """Return the engine of one of Lightning's strategies: its own, else one that holds everything whole."""
    if not hasattr(strategy, "engine"):
        strategy.engine = Whole(strategy)
    return strategy.engine
