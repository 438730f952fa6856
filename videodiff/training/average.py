"""The average of the weights, read from the optimizer's state wherever an engine keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from videodiff.parallel.engine import Engine


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@contextmanager
def averaged(module: nn.Module, engine: Engine) -> Iterator[None]:
    """Put the averages in the place of the weights while the block runs; every rank has to enter."""
    parameters = trainable(module)
    averages = engine.averages(parameters)
    with engine.gathered(parameters.values()):
        weights = {name: p.detach().clone() for name, p in parameters.items()}
        write(parameters, averages)
    try:
        yield
    finally:
        with engine.gathered(parameters.values()):
            write(parameters, weights)


@torch.no_grad()
def write(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy values into parameters, in place."""
    for name, p in parameters.items():
        p.copy_(values[name])
