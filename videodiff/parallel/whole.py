"""The engine for strategies under which every process holds all weights and all state: a single device, or DDP."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from videodiff.parallel.muon.whole import SharedMuon
from videodiff.training.optimizer import AdamW, Muon
from videodiff.training.state.pieces import AVERAGE, STEP, WEIGHT, Piece, kept, piece_of, share, state_pieces
from videodiff.training.state.saved import Saved


class Whole:
    """Implements `parallel.engine.Engine` for Lightning's plain strategies; each process saves its share."""

    split, copied = False, False

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.limit, self.norm = math.inf, 0.0

    def layout(self, world: int) -> str:
        """Return that the state is whole, for any number of processes."""
        return "whole"

    def pieces(self, module: nn.Module) -> list[Piece]:
        """Return this process's share of the state: all processes hold the same."""
        state, held = self.strategy.optimizers[0].state, []
        for name, value in kept(module).items():
            held.append(piece_of(name, WEIGHT, value))
            held += state_pieces(name, value, state.get(value, {}))
        return share(held, self.strategy.global_rank, self.strategy.world_size)

    def load(self, module: nn.Module, saved: Saved) -> None:
        """Fill weights, buffers and the optimizer's state."""
        optimizer, places = self.strategy.optimizers[0], []
        for name, value in kept(module).items():
            places.append(piece_of(name, WEIGHT, value))
            for key, shape in saved.keys(name).items():
                state = optimizer.state[value]
                if shape is None:
                    state[key] = as_kept(optimizer, key, saved.number(name, key))
                else:
                    dtype = torch.float32 if key == AVERAGE else value.dtype
                    state[key] = torch.empty_like(value, dtype=dtype, requires_grad=False)
                    places.append(piece_of(name, key, state[key]))
        saved.fill(places)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: all state is in the pieces."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there never is any."""

    def choose_optimizer(self, make: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
        """Return the optimizer unchanged; for Muon, one whose work the processes of a node share."""
        processes = getattr(self.strategy, "num_processes", 1)
        if processes > 1 and isinstance(make, partial) and make.func is Muon:
            return partial(SharedMuon, *make.args, processes=processes, **make.keywords)
        return make

    def examine_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """Compute the norm of the gradient; a gradient that is not finite or too large is dropped: nothing changes."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # Here the host waits for the device, once per step.
        self.norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        if self.skipped():
            for p in parameters:
                p.grad = None

    def skipped(self) -> bool:
        """Return whether the last gradient was too large or not finite; all ranks have the same summed gradient."""
        return not (math.isfinite(self.norm) and self.norm <= self.limit)

    def gradient_norm(self) -> float | None:
        """Return the norm of the gradient of the last step, before clipping."""
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

    def shape(self, p: nn.Parameter) -> torch.Size:
        """Return the shape of a parameter."""
        return p.shape

    @contextmanager
    def exchanged(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Exchange the weights for their averages."""
        averages = self.averages(parameters)
        weights = {name: p.detach().clone() for name, p in parameters.items()}
        write(parameters, averages)
        try:
            yield
        finally:
            write(parameters, weights)

    def adopt(self, module: nn.Module) -> None:
        """Leave the module as it is."""


@torch.no_grad()
def write(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy values into parameters, in place."""
    for name, p in parameters.items():
        p.copy_(values[name])


def as_kept(optimizer: torch.optim.Optimizer, key: str, value: float) -> Tensor | int | float:
    """Return a number of the optimizer's state in the optimizer's type: its count of steps is a tensor."""
    counts = key == STEP and isinstance(optimizer, AdamW | Muon)
    return torch.tensor(float(value)) if counts or isinstance(value, float) else value
