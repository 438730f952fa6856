"""Averages take the place of weights under ZeRO 3 part by part, and no process holds them whole."""

from __future__ import annotations

import gc
import os
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.sequence import together
from videodiff.parallel.zero.engine import ZeroEngine, split_weight
from videodiff.training.optimizer import AdamW

# 961 weights of a matrix divide neither by two nor by four; a bias is so small that it is kept whole.
WIDTH, DEPTH, KEPT_WHOLE = 31, 16, 64


class Deep(nn.Module):
    """A row of layers, the third of which is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.layers[2].requires_grad_(False)
        # The bytes of all tensors of this process at a few places of a pass that samples.
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        """Map `b d` to `b d`."""
        for number, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if not self.training and number % 6 == 5:
                self.seen.append(held())
        return x


def given(step: int, dtype: torch.dtype) -> Tensor:
    """Return the input of a step."""
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(step)).to(dtype)


def held() -> int:
    """Return the bytes of all tensors of this process."""
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
    gc.collect()
    start = held()
    with torch.no_grad(), exchanged:
        entered = held()
        # Two passes, as of two steps of a sampler.
        made = [network.eval()(given(98 + n, dtype)).float().tolist() for n in range(2)]
    network.train()
    more = max(entered, *network.seen) - start
    return {"made": made, "same": same(before, state_of(network, zero)), "more": more}


def trained(dtype: torch.dtype, offload: bool, ways: tuple[str, ...]) -> dict[str, Any]:
    """Take two steps, sample in these ways, and take one more step."""
    import deepspeed

    network = Deep().to(dtype)
    zero = {"stage": 3, "stage3_param_persistence_threshold": KEPT_WHOLE, "stage3_prefetch_bucket_size": 0}
    zero |= {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "sub_group_size": 5000}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "gradient_clipping": 0.0}
    config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    config |= {"bf16": {"enabled": True}} if dtype is torch.bfloat16 else {}
    if offload:
        config["zero_optimization"] |= {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    for p in network.parameters():
        split_weight(p, config)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = AdamW([{"params": list(parameters.values())}], lr=0.1, ema_decay=0.9)
    trainer, zero, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
    engine = ZeroEngine(SimpleNamespace(optimizers=[zero], lightning_module=network), 3)

    def advance(step: int) -> None:
        trainer.backward(trainer(given(step, dtype)).float().square().mean())
        trainer.step()

    advance(0)
    advance(1)
    found: dict[str, Any] = {way: sampled(way, network, engine, dtype) for way in ways}
    advance(2)
    found["after"] = state_of(network, zero)
    return found


def everything(_: Any, cases: list[tuple[torch.dtype, bool]]) -> list[dict[str, Any]]:
    """Train with and without samples, in each type, on the device or with all offloaded."""
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    found = []
    for case in cases:
        without, sampled = trained(*case, ()), trained(*case, ("live", "exchanged", "whole_exchanged"))
        sampled["goes on"] = same(without["after"], sampled.pop("after"))
        found.append(sampled)
    return found


# The type of the weights, and whether weights and state are offloaded to the host.
TWO = [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]


@pytest.mark.parametrize(("processes", "cases"), [(2, TWO), (4, [(torch.float32, False)])])
def test_averages_are_exchanged_part_by_part(processes: int, cases: list[tuple[torch.dtype, bool]]) -> None:
    for rank in together(processes, everything, cases):
        for found, case in zip(rank, cases, strict=True):
            live, parts, whole = (found[way] for way in ("live", "exchanged", "whole_exchanged"))
            assert parts["made"] == whole["made"], case
            assert parts["made"] != live["made"], case
            assert parts["same"], case
            assert found["goes on"], case
            layer = (WIDTH + 1) * WIDTH * case[0].itemsize
            trained_bytes = (DEPTH - 1) * layer
            # The part that is kept aside, and two layers that are gathered for a moment.
            limit = trained_bytes // processes + 3 * layer
            assert parts["more"] < limit < trained_bytes, case
            # The way that holds all is seen by the same count: averages in float32, and weights.
            assert whole["more"] > trained_bytes, case
