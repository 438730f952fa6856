"""The engine where every process holds all weights and all state: a single device, or DDP."""

from __future__ import annotations

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
        self.norm: Tensor | None = None
        self.finite = True

    def layout(self, world: int) -> str:
        """Return that the state is whole, however many processes there are."""
        return "whole"

    def choose_optimizer(self, make: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
        """Return the optimizer as it is."""
        return make

    def examine_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the norm of the gradient; where it is not finite, drop the gradient, and the step changes nothing."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        # The host waits for the device here, once a step.
        self.finite = bool(self.norm.isfinite())
        if not self.finite:
            for p in parameters:
                p.grad = None

    def skipped(self) -> bool:
        """Tell whether the norm of the last gradient is no number; all ranks have the same summed gradient."""
        return not self.finite

    def gradient_norm(self) -> float | None:
        """Return the norm of the gradient of the last step, as clipping takes it."""
        return None if self.norm is None else float(self.norm)

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
