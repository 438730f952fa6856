"""Optimizers whose state holds the average: AdamW, and Muon for the matrices of the blocks.

The EMA of each parameter lives in `optimizer.state[parameter]["ema"]` beside its moments, so it moves only on real
optimizer steps, ZeRO shards it, and checkpoints carry it.

Muon is our own beside torch's (torch.optim.Muon of 2.13), which always orthogonalises in bfloat16 and one matrix at a
time, has no AdamW for the other parameters and would give other weights than the runs that were measured. Ours stacks
matrices of one shape and keeps their precision: on a CPU core it takes 0.7 of torch's time at width 64 and 2.5 times
as long at width 512, where bfloat16 decides (2026-11-28, `bench/muon.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

Group = dict[str, Any]


@torch.no_grad()
def begun(optimizer: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
    """Return the first values of averages that begin before a step: copies of the weights that have no average.

    The average of new weights begins after the first step.
    """
    if not getattr(optimizer, "averages_from_start", False):
        return {}
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return {p: p.to(torch.float32, copy=True) for p in parameters if "ema" not in optimizer.state.get(p, {})}


@torch.no_grad()
def average(
    optimizer: torch.optim.Optimizer, decay: float, before: Mapping[Tensor, Tensor] = MappingProxyType({})
) -> None:
    """Move the EMA of every parameter toward its value; the decay starts low: min(decay, (1 + step) / (10 + step)).

    `before`: what an average that there is not yet begins with, by default the value.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    states = [optimizer.state[p] for p in parameters]
    for p, state in zip(parameters, states, strict=True):
        if "ema" not in state:
            state["ema"] = before[p] if p in before else p.to(torch.float32, copy=True)
        # The fused kernel keeps its step on the device; to read it would wait for the device once per parameter.
        state["ema_step"] = state["ema_step"] + 1 if "ema_step" in state else int(state["step"])
    if parameters:
        weights = [1 - min(decay, (1 + state["ema_step"]) / (10 + state["ema_step"])) for state in states]
        # With one number, not a list of equal ones: torch 2.11 knows no other form for the sharded weights of FSDP2.
        for weight in set(weights):
            same = [i for i, other in enumerate(weights) if other == weight]
            torch._foreach_lerp_([states[i]["ema"] for i in same], [parameters[i].float() for i in same], weight)


def choose_fused(optimizer: torch.optim.Optimizer, groups: Iterable[Group], fused: bool | None) -> None:
    """Choose torch's fused AdamW kernel for each group, or not; None: if all its parameters are on CUDA.

    This runs at each step, because a strategy may replace the parameters.
    """
    for group in groups:
        on_cuda = all(p.is_cuda for p in group["params"])
        group["fused"] = (on_cuda if fused is None else fused) or None
        for p in group["params"]:
            # The fused kernel counts steps on the device, the others on the host; a saved state may have either count.
            home, step = p.device if group["fused"] else torch.device("cpu"), optimizer.state.get(p, {}).get("step")
            if isinstance(step, Tensor) and step.device != home:
                optimizer.state[p]["step"] = step.to(home)


class WithAverage:
    """A mix-in of an optimizer: a step chooses the kernels of AdamW, updates the weights, and moves the average."""

    ema_decay: float
    fused: bool | None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one step, then move the average."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        choose_fused(self, self.adamw_groups(), self.fused)
        before = begun(self)
        self.update()
        average(self, self.ema_decay, before)
        return loss

    def adamw_groups(self) -> list[Group]:
        """Return the groups that AdamW updates."""
        return self.param_groups

    def update(self) -> None:
        """Update the weights and the moments; the average does not change."""
        raise NotImplementedError


class AdamW(WithAverage, torch.optim.AdamW):
    """torch's AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) with an EMA of the weights in its state.

    `fused`: by one kernel for all parameters and operations; None: on CUDA.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        ema_decay: float = 0.999,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
        self.ema_decay, self.fused = ema_decay, fused

    def update(self) -> None:
        """Update the weights as torch does."""
        torch.optim.AdamW.step(self)


class Muon(WithAverage, torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for groups marked `matrix`, AdamW for the others, with an EMA of all weights.

    A matrix moves along the orthogonal factor of its momentum, scaled by 0.2 sqrt(max(rows, columns)) so that its
    step has the size of an AdamW step at the same learning rate (Liu et al. 2025, arXiv 2502.16982, eq. 4). `fused`:
    AdamW by one kernel for all parameters and operations; None: on CUDA.
    """

    def __init__(
        self,
        params: Iterable[Group],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        ema_decay: float = 0.999,
        fused: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "matrix": False})
        self.ema_decay, self.fused = ema_decay, fused

    def adamw_groups(self) -> list[Group]:
        """Return the groups of what is no matrix."""
        return [group for group in self.param_groups if not group["matrix"]]

    def update(self) -> None:
        """Update the matrices along their orthogonal factors, and the other weights by AdamW."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if "step" not in self.state[p]:
                    on = p.device if group.get("fused") else torch.device("cpu")
                    self.state[p]["step"] = torch.zeros((), device=on)
            if parameters:
                (self._matrices if group["matrix"] else self._adamw)(group, parameters)

    def _matrices(self, group: Group, parameters: list[Tensor]) -> None:
        for p in parameters:
            if p.ndim != 2:
                raise ValueError(
                    f"optimizer: Muon found a parameter of shape {tuple(p.shape)}, expected a matrix: a strategy that "
                    "flattens the parameters (ZeRO) needs optimizer=adamw"
                )
        states, grads = self.begun_states(parameters, "momentum"), [p.grad for p in parameters]
        momenta = [state["momentum"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        # In place, the form that torch 2.11 knows for the sharded weights of FSDP2.
        updates = [grad.clone() for grad in grads]
        torch._foreach_lerp_(updates, momenta, group["momentum"])
        self.replace(updates)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def replace(self, updates: list[Tensor]) -> None:
        """Replace the momentum of each matrix in a list by what the matrix moves along, at a learning rate of one.

        Processes that hold the same matrices, or parts of them, may share this work.
        """
        step_along(updates)

    def begun_states(self, parameters: Iterable[Tensor], *keys: str) -> list[dict[str, Any]]:
        """Return the states of parameters; the entries `keys` of new ones begin with zeros."""
        states = []
        for p in parameters:
            state = self.state[p]
            states.append(state)
            for key in keys:
                # No default of `setdefault`: it would be made at each step.
                if key not in state:
                    state[key] = torch.zeros_like(p)
        return states

    def _adamw(self, group: Group, parameters: list[Tensor]) -> None:
        states = self.begun_states(parameters, "exp_avg", "exp_avg_sq")
        adamw(
            parameters,
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=not group["fused"],
            fused=bool(group["fused"]),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def step_along(updates: list[Tensor]) -> None:
    """Replace matrices in a list by their orthogonal factors, scaled; those of one shape are iterated together."""
    for shape in dict.fromkeys(update.shape for update in updates):
        same = [i for i, update in enumerate(updates) if update.shape == shape]
        steps = torch.stack([updates[i] for i in same])
        torch.mul(orthogonalise(steps), 0.2 * max(shape) ** 0.5, out=steps)
        for i, step in zip(same, steps, strict=True):
            updates[i] = step


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest orthogonal matrix to each matrix (n, rows, columns), by a quintic iteration.

    The coefficients are Muon's: they raise all singular values to between 0.7 and 1.2 in five steps.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        # a x + (b gram + c gram^2) x
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
