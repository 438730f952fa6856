"""The engine where every process holds all weights and all state: a single device, or DDP."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from videodiff.training.run.files import StateFile


class Whole:
    """Implements `parallel.engine.Engine` for Lightning's plain strategies; the first process writes the state."""

    split = False

    def __init__(self, strategy: Strategy) -> None:
        self.strategy, self.writer = strategy, StateFile()
        strategy.checkpoint_io = self.writer
        self.limit, self.norm = math.inf, 0.0

    def layout(self, world: int) -> str:
        """Return that the state is whole, however many processes there are."""
        return "whole"

    def choose_optimizer(self, make: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
        """Return the optimizer as it is."""
        return make

    def examine_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the norm of the gradient; where it is not finite or too large, drop it: the step changes nothing."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # The host waits for the device here, once a step.
        self.norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        if self.skipped():
            for p in parameters:
                p.grad = None

    def skipped(self) -> bool:
        """Tell whether the last gradient was too large or no number; all ranks have the same summed gradient."""
        return not (math.isfinite(self.norm) and self.norm <= self.limit)

    def gradient_norm(self) -> float | None:
        """Return the norm of the gradient of the last step, as clipping takes it."""
        return self.norm

    def weights(self) -> list[Tensor]:
        """Return all trainable weights."""
        return [p for p in self.strategy.lightning_module.parameters() if p.requires_grad]

    def count(self, parameters: Iterable[nn.Parameter]) -> int:
        """Return how many weights these parameters hold."""
        return sum(p.numel() for p in parameters)

    def averages(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the averages by name, copies of the parameters before the first step."""
        state = self.strategy.optimizers[0].state
        return {
            name: state[p]["ema"] if "ema" in state[p] else p.detach().float().clone() for name, p in parameters.items()
        }

    def gathered(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
        """Return an empty context: the parameters are whole."""
        return nullcontext()
