"""The engine: the protocol of the part that holds the weights and takes the steps.

`whole.py` implements it for strategies under which every process holds all weights (a single device, DDP),
`zero/engine.py` for ZeRO, `fsdp/engine.py` for FSDP2. Training and the verbs know only this file; Lightning's
strategies run the forward and backward passes.
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

    `split`: whether the processes hold different weights. `copied`: whether `pieces` are copies. `limit`: a gradient
    with a larger norm takes no step; training may set it before each step.
    """

    split: bool
    copied: bool
    limit: float

    def layout(self, world: int) -> str:
        """Return in words how the state of training is laid out over `world` processes."""

    def pieces(self, module: nn.Module) -> list[Piece]:
        """Return what this process must save of weights, buffers and optimizer; together all save each value once."""

    def load(self, module: nn.Module, saved: Saved) -> None:
        """Fill weights, buffers and the optimizer's state from what any topology has saved; every rank has to call."""

    def state_dict(self) -> dict[str, Any]:
        """Return what else a checkpoint must hold, as plain values, the same on all ranks; often nothing."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` of this kind of engine returned, if it was not empty."""

    def choose_optimizer(self, make: MakeOptimizer) -> MakeOptimizer:
        """Return the optimizer to build instead of this one; often the same."""

    def examine_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """Examine the gradient before a step; if its norm is not finite or above `limit`, nothing changes."""

    def skipped(self) -> bool:
        """Return whether the last step changed nothing because of its gradient; all ranks return the same."""

    def gradient_norm(self) -> float | None:
        """Return the norm of the gradient of the last step, taken or skipped; None if it is not known."""

    def weights(self) -> list[Tensor]:
        """Return the trainable weights, or the part of them that this process holds."""

    def count(self, parameters: Iterable[nn.Parameter]) -> int:
        """Return how many weights these parameters hold when they are whole."""

    def shape(self, p: nn.Parameter) -> torch.Size:
        """Return the full shape of a parameter."""

    def exchanged(self, parameters: Mapping[str, nn.Parameter]) -> AbstractContextManager[None]:
        """Return a context in which these parameters have the values of their averages; every rank has to enter."""

    def adopt(self, module: nn.Module) -> None:
        """Take a module over, once, before its optimizer is made; if `split`, its denoiser may have no memory yet."""


def engine_of(strategy: Any) -> Engine:
    """Return the engine of a Lightning strategy: its own, or else one that holds everything whole."""
    if not hasattr(strategy, "engine"):
        strategy.engine = Whole(strategy)
    return strategy.engine
