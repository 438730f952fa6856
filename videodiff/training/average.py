"""The average of the weights, read from the optimizer's state wherever an engine keeps it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import nn

from videodiff.parallel.engine import Engine


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def averaged(module: nn.Module, engine: Engine) -> AbstractContextManager[None]:
    """Return a context in which the averages stand in the place of the weights; every rank has to enter."""
    return engine.exchanged(trainable(module))
