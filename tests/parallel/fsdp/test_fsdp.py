"""What a configuration of FSDP2 asks of torch, and what torch does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils._python_dispatch import TorchDispatchMode

from bench.sequence import Asked, clips, network, together
from videodiff.parallel.fsdp.engine import FsdpEngine
from videodiff.parallel.strategy import fsdp2


def test_weights_are_gathered_and_gradients_summed_each_in_its_type() -> None:
    how = fsdp2(reshard_after_forward=False, gather="bfloat16", reduce="float32").engine.how
    assert how["mp_policy"] == MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    assert how["reshard_after_forward"] is False
    how = fsdp2().engine.how
    assert how["mp_policy"] == MixedPrecisionPolicy(torch.float32, torch.float32, cast_forward_inputs=False)
    assert how["reshard_after_forward"] is True


class Words(nn.Linear):
    """Stands for a text encoder that is trained."""

    trainable = True


class Called(TorchDispatchMode):
    """Writes down the collectives, each with the type of what it sends."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.namespace == "c10d":
            self.calls.append((operation.overloadpacket.__name__, args[1].dtype))
        return operation(*args, **(kwargs or {}))


# The type of gathered weights, that of summed gradients, and whether weights are freed between the passes.
CASES = [("float32", "float32", True), ("bfloat16", "float32", False), ("bfloat16", "bfloat16", True)]


def called(_: Any, cases: list[tuple[str, str, bool]]) -> list[list[tuple[str, torch.dtype]]]:
    """Return the collectives of a step of two blocks and a text encoder, for each case."""
    asked, found = Asked(width=16, depth=2, frames=2, side=8), []
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    strategy = SimpleNamespace(root_device=torch.device("cpu"), device_mesh=mesh)
    for gather, reduce, free in cases:
        module = SimpleNamespace(denoiser=network(asked), text=Words(8, 8))
        FsdpEngine(strategy, **fsdp2(free, gather, reduce).engine.how).adopt(module)
        with Called() as calls:
            words = module.text(torch.ones(1, 7, 8, dtype=getattr(torch, gather)))
            module.denoiser(**clips(asked) | {"text": words}).square().mean().backward()
        found.append(calls.calls)
    return found


def test_each_block_the_rest_and_the_words_are_sent_by_themselves() -> None:
    for rank in together(2, called, CASES):
        for calls, (gather, reduce, free) in zip(rank, CASES, strict=True):
            gathers = 4 * [("_allgather_base_", getattr(torch, gather))] * (1 + free)
            sums = 4 * [("_reduce_scatter_base_", getattr(torch, reduce))]
            assert sorted(calls, key=str) == sorted(gathers + sums, key=str), (gather, reduce, free)
