"""Averages take the place of weights under ZeRO 3 part by part, no process holds them whole, and training goes on."""

from __future__ import annotations

import gc
import os
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.sequence import together
from videodiff.parallel.zero.engine import ZeroEngine, split_weight
from videodiff.training.optimizer import AdamW, Muon

# 961 weights of a matrix divide neither by two nor by four; a bias is so small that it is kept whole.
WIDTH, DEPTH, KEPT_WHOLE = 31, 16, 64
STEPS = 3
# Nothing is gathered ahead of its use, or longer than that.
FEW = {"stage3_param_persistence_threshold": KEPT_WHOLE, "stage3_prefetch_bucket_size": 0, "sub_group_size": 5000}
FEW |= {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
# About two layers are gathered ahead, and stay for as long.
AHEAD = {**FEW, "stage3_prefetch_bucket_size": 2000, "stage3_max_live_parameters": 5000}
AHEAD |= {"stage3_max_reuse_distance": 2000}
# The values of conf/strategy/zero3.yaml: all is kept whole.
ALL = {"stage3_param_persistence_threshold": 100_000, "stage3_prefetch_bucket_size": 50_000_000}
ALL |= {"stage3_max_live_parameters": 300_000_000, "stage3_max_reuse_distance": 300_000_000}


class Case(NamedTuple):
    """The type of the weights, settings of ZeRO, whether Muon takes the steps, and at which step all overflows.

    `micro`: the micro-batches of a step. With one, samples come before DeepSpeed has recorded a whole step.
    """

    dtype: torch.dtype
    zero: dict[str, Any]
    muon: bool = False
    overflow: int | None = None
    micro: int = 2

    @property
    def few(self) -> bool:
        """Return whether only what is in use may be whole."""
        return self.zero.get("stage3_max_live_parameters") == 0


class Deep(nn.Module):
    """A row of layers, the third of which is frozen, and a weight of one value, fewer than there are processes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.layers[2].requires_grad_(False)
        self.gain = nn.Parameter(torch.full((1,), 0.9))
        # The bytes of all tensors of this process at a few places of a pass that samples, if they are counted.
        self.seen, self.watched = [0], False

    def forward(self, x: Tensor) -> Tensor:
        """Map `b d` to `b d`."""
        x = x * self.gain
        for number, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if self.watched and not self.training and number % 6 == 5:
                self.seen.append(held())
        return x


def given(step: int, dtype: torch.dtype) -> Tensor:
    """Return the input of a step."""
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(step)).to(dtype)


def held() -> int:
    """Return the bytes of all tensors of this process."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if isinstance(one, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def state_of(network: nn.Module, zero: Any) -> list[Tensor]:
    """Return copies of all that this process holds of weights and of the optimizer."""
    parts = [p.ds_tensor for p in network.parameters()]
    states = [value for flat in zero.fp32_partitioned_groups_flat for value in zero.optimizer.state[flat].values()]
    flats = [*zero.fp32_partitioned_groups_flat, *zero.fp16_partitioned_groups_flat]
    return [torch.as_tensor(value).detach().clone() for value in (*parts, *flats, *states)]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Return whether these tensors are equal to the bit."""
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def sampled(way: str, network: Deep, engine: ZeroEngine, dtype: torch.dtype) -> dict[str, Any]:
    """Return what the network gives with averages that were exchanged in this way, and what that cost and changed."""
    (zero,) = engine.strategy.optimizers
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    exchanged = nullcontext() if way == "live" else getattr(engine, way)(parameters)
    before, network.seen = state_of(network, zero), []
    start = held() if network.watched else 0
    with torch.no_grad(), exchanged:
        network.seen.append(held() if network.watched else 0)
        # Two passes, as of two steps of a sampler.
        made = [network.eval()(given(98 + n, dtype)).float().tolist() for n in range(2)]
    network.train()
    return {"made": made, "same": same(before, state_of(network, zero)), "more": max(network.seen) - start}


def begun(case: Case) -> tuple[Deep, Any, ZeroEngine]:
    """Return a network, what trains it, and its engine."""
    import deepspeed

    network = Deep().to(case.dtype)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3, **case.zero}}
    config |= {"gradient_clipping": 0.0 if case.muon else 1e-3, "gradient_accumulation_steps": case.micro}
    config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    types = {torch.bfloat16: {"bf16": {"enabled": True}}}
    types[torch.float16] = {"fp16": {"enabled": True, "initial_scale_power": 8, "hysteresis": 1}}
    config |= types.get(case.dtype, {})
    engine = ZeroEngine(SimpleNamespace(config=config, lightning_module=network), 3)
    make = engine.choose_optimizer(partial(Muon if case.muon else AdamW, lr=0.1, ema_decay=0.9))
    for p in network.parameters():
        split_weight(p, config)
    trained = [p for p in network.parameters() if p.requires_grad]
    matrices = [p for p in trained if len(p.ds_shape) == 2]
    others = [p for p in trained if len(p.ds_shape) == 1]
    optimizer = make([{"params": matrices, "matrix": True}, {"params": others, "matrix": False}])
    # As in a training, samples do not call the outermost module, which begins DeepSpeed's record of a step.
    trainer, zero, *_ = deepspeed.initialize(model=nn.Sequential(network), optimizer=optimizer, config=config)
    engine.strategy.optimizers = [zero]
    return network, trainer, engine


def trained(case: Case, ways: tuple[str, ...]) -> dict[str, Any]:
    """Take steps, sample in these ways after each but the last, and return what remains."""
    network, trainer, engine = begun(case)
    found: dict[str, Any] = {"samples": [], "skipped": []}
    for step in range(STEPS):
        for micro in range(case.micro):
            loss = trainer(given(2 * step + micro, case.dtype)).float().square().mean()
            trainer.backward(loss * (1e30 if step == case.overflow else 1.0))
            trainer.step()
        found["skipped"].append(bool(engine.strategy.optimizers[0].overflow))
        network.watched = case.few and step == STEPS - 2
        if step < STEPS - 1:
            found["samples"].append({way: sampled(way, network, engine, case.dtype) for way in ways})
    found["after"] = state_of(network, engine.strategy.optimizers[0])
    return found


def everything(_: Any, cases: dict[str, Case]) -> dict[str, dict[str, Any]]:
    """Train with and without samples in each case."""
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    import deepspeed
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed refuses float16 on processors that are slow with it.
    CPU_Accelerator.is_fp16_supported = lambda self: True
    deepspeed.init_distributed("gloo")
    found = {}
    for name, case in cases.items():
        without, sampled = trained(case, ()), trained(case, ("whole_exchanged", "exchanged", "live"))
        sampled["goes on"] = same(without["after"], sampled.pop("after"))
        found[name] = sampled
    return found


OFFLOADED = {**FEW, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
TWO = {
    "float32": Case(torch.float32, FEW),
    "bfloat16": Case(torch.bfloat16, FEW),
    "offload": Case(torch.bfloat16, OFFLOADED),
    "overflow": Case(torch.float16, ALL, overflow=1),
    "muon": Case(torch.float32, AHEAD, muon=True, micro=1),
}
# The last case makes groups of processes, which stay.
FOUR = {
    "float32": Case(torch.float32, FEW),
    "copies": Case(torch.bfloat16, {**AHEAD, "zero_hpz_partition_size": 2}, micro=1),
}


@pytest.mark.parametrize(("processes", "cases"), [(2, TWO), (4, FOUR)])
def test_averages_are_exchanged_part_by_part(processes: int, cases: dict[str, Case]) -> None:
    for rank in together(processes, everything, cases):
        for name, case in cases.items():
            found = rank[name]
            assert found["goes on"], name
            assert found["skipped"] == [step == case.overflow for step in range(STEPS)], name
            for made in found["samples"]:
                live, parts, whole = (made[way] for way in ("live", "exchanged", "whole_exchanged"))
                assert parts["made"] == whole["made"], name
                assert parts["same"], name
                assert whole["same"], name
            # The average of one step is the weight.
            assert parts["made"] != live["made"] or case.overflow, name
            if case.few:
                layer = (WIDTH + 1) * WIDTH * case.dtype.itemsize
                trained_bytes = (DEPTH - 1) * layer
                # The part that is kept aside, and two layers that are gathered for a moment.
                limit = trained_bytes // processes + 3 * layer
                assert parts["more"] < limit < trained_bytes, name
                # The way that holds all is seen by the same count: averages in float32, and weights.
                assert whole["more"] > trained_bytes, name
