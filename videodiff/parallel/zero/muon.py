"""Muon under ZeRO: DeepSpeed orthogonalises whole gradients before it shards them; the step and the average are ours.

ZeRO hands an optimizer flat pieces of matrices, which no Muon can orthogonalise; DeepSpeed does it for parameters
marked `use_muon` if the optimizer is its own class. Its step has the size 1 / sqrt(columns) per entry, ours 0.2:
matrices are grouped by their number of columns, and the learning rate of a group makes up for the difference.

DeepSpeed compiles its orthogonalisation at the first step. On a CPU this takes 20 s, or minutes on a loaded one, and
gains nothing, so there it is not compiled. On CUDA it is: the first step of a run is slow.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from deepspeed.runtime.zero.muon import original_muon
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
from torch import Tensor, nn

from videodiff.training.optimizer import Group, Muon, average, begun


class ZeroMuon(MuonWithAuxAdam):
    """The optimizer `videodiff.training.optimizer.Muon` in a form that DeepSpeed can shard; `fused` must be unset."""

    def __init__(self, params: Iterable[Group], **settings: Any) -> None:
        given = inspect.signature(Muon).bind(params, **settings)
        given.apply_defaults()
        how, groups = given.arguments, []
        lr = how["lr"]
        for group in params:
            decay = group.get("weight_decay", how["weight_decay"])
            if group["matrix"]:
                for columns, matrices in by_columns(group["params"]).items():
                    scaled = lr * 0.2 * columns**0.5
                    # DeepSpeed multiplies the decay by its learning rate, which is the scaled one here.
                    own = {"lr": scaled, "momentum": how["momentum"], "weight_decay": decay * lr / scaled}
                    groups.append({"params": matrices, "use_muon": True, "ns_method": "standard", **own})
            else:
                own = {"lr": lr, "betas": tuple(how["betas"]), "eps": how["eps"], "weight_decay": decay}
                groups.append({"params": list(group["params"]), "use_muon": False, **own})
        for group in groups:
            for p in group["params"]:
                p.use_muon = group["use_muon"]
        super().__init__(groups)
        self.ema_decay = how["ema_decay"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None, step_id: int | None = None) -> Tensor | None:
        """Take one step, then move the average."""
        before = begun(self)
        loss = super().step(closure, step_id)
        for group in self.param_groups:
            for p in group["params"] if group["use_muon"] else []:
                self.state[p]["step"] = self.state[p].get("step", 0) + 1
        average(self, self.ema_decay, before)
        return loss


def run_as_written() -> None:
    """Replace DeepSpeed's compiled orthogonalisation by the plain one; DeepSpeed looks it up at each step."""
    for name in ("zeropower_via_newtonschulz5", "muon_update"):
        setattr(original_muon, name, inspect.unwrap(getattr(original_muon, name)))


def by_columns(matrices: Iterable[nn.Parameter]) -> dict[int, list[nn.Parameter]]:
    """Group matrices by their number of columns."""
    groups: dict[int, list[nn.Parameter]] = {}
    for p in matrices:
        # ZeRO 3 empties parameters that it has split.
        groups.setdefault(getattr(p, "ds_shape", p.shape)[1], []).append(p)
    return groups


def splittable(optimizer: Callable[..., Any], config: dict[str, Any]) -> Callable[..., Any]:
    """Return the optimizer to use under ZeRO instead of this one; for Muon, DeepSpeed's `config` is changed too."""
    if not (isinstance(optimizer, partial) and optimizer.func is Muon):
        return optimizer
    if config["zero_optimization"].get("offload_optimizer", {}).get("device") == "nvme":
        raise ValueError(
            "optimizer: found muon with strategy.nvme, expected adamw: Muon's momenta are of whole matrices; "
            "optimizer=adamw, or leave strategy.nvme out"
        )
    # Muon needs whole gradients, not pieces of a summed one.
    config["zero_optimization"]["reduce_scatter"] = False
    # DeepSpeed would clip the orthogonalised update instead of the gradient, which would shrink every step.
    config["gradient_clipping"] = 0.0
    if not torch.cuda.is_available():
        run_as_written()
    keywords = dict(optimizer.keywords)
    if keywords.pop("fused", None):
        raise ValueError(
            "optimizer.fused: found true, expected null for Muon under ZeRO: DeepSpeed's own step has none"
        )
    return partial(ZeroMuon, *optimizer.args, **keywords)
