"""The average of the weights, read from the optimizer's state wherever it is sharded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn


def is_sharded(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether this is one of DeepSpeed's ZeRO optimizers."""
    return type(optimizer).__module__.startswith("deepspeed.runtime")


def average_of(p: nn.Parameter, optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Return the whole average of one parameter, None before the first step. Under ZeRO every rank has to call."""
    if is_sharded(optimizer):
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(p, "ema")
    return optimizer.state[p].get("ema")


def averages(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the averages of all trainable parameters by name; the parameter itself where there is none yet."""
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        # ZeRO 1 and 2 link the states of all groups after the first group's first step, when the others have none, and
        # those of a checkpoint not before the next step.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    found = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            ema = average_of(p, optimizer)
            found[name] = p.detach().float().clone() if ema is None else ema.reshape(whole_shape(p))
    return found


def whole_shape(p: nn.Parameter) -> torch.Size:
    """Return the shape of a parameter, also where ZeRO 3 has emptied it."""
    return getattr(p, "ds_shape", p.shape)


@contextmanager
def averaged(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put the averages in the place of the weights while the block runs."""
    ema = averages(module, optimizer)
    parameters = {name: p for name, p in module.named_parameters() if name in ema}
    with gathered(parameters.values(), optimizer):
        weights = {name: p.detach().clone() for name, p in parameters.items()}
        write(parameters, ema)
    try:
        yield
    finally:
        with gathered(parameters.values(), optimizer):
            write(parameters, weights)


@torch.no_grad()
def write(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    """Copy values into parameters, in place."""
    for name, p in parameters.items():
        p.copy_(values[name])


def gathered(parameters: object, optimizer: torch.optim.Optimizer) -> object:
    """Return a context in which parameters that ZeRO 3 has split are whole and may be changed."""
    parameters = list(parameters)
    if is_sharded(optimizer) and any(hasattr(p, "ds_id") for p in parameters):
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)
    return nullcontext()
