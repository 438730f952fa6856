"""Processes that share the iteration of Muon take the steps of one that does all of it, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from bench.planning.traffic import Called
from bench.sequence import together
from videodiff.parallel.fsdp.engine import whole
from videodiff.parallel.muon import division
from videodiff.parallel.muon import rows as muon_rows
from videodiff.parallel.muon import whole as muon_whole
from videodiff.parallel.muon.rows import ShardedMuon
from videodiff.parallel.muon.whole import SharedMuon
from videodiff.parallel.strategy import ddp
from videodiff.parallel.whole import Whole
from videodiff.training.optimizer import AdamW, Muon, step_along

SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "ema_decay": 0.9}
STEPS = 5
# Of three rows and of one, not every process has one; the matrices of one shape are not all with one process.
UNEVEN = [(12, 4), (4, 4), (4, 12), (12, 4), (5, 7), (12, 4), (3, 8), (1, 6), (12, 4)]
NAMES = {"uneven": UNEVEN, "one": [(9, 4)], "wide": [(96, 24), (24, 96), (72, 24), (24, 24), (48, 24)]}


class Found(NamedTuple):
    """What a process found: names of what differs, and how many matrices it iterated and collectives it called."""

    other: list[str]
    iterated: int
    calls: list[str]


def weights(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    """Return matrices, a frozen one and a vector, the same on every process."""
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [*shapes, (4, 4), (7,)]]
    made[-2].requires_grad_(False)
    return made


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": parameters[:-1], "matrix": True},
        {"params": parameters[-1:], "matrix": False, "weight_decay": 0.0},
    ]


def gradient(p: Tensor, step: int, index: int) -> Tensor | None:
    """Return the gradient of a parameter in a step: in the second step the first has none, in the third nobody."""
    if not p.requires_grad or step == 2 or (step == 1 and index == 0):
        return None
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + index))


def train(optimizer: Muon, parameters: list[nn.Parameter], split: Callable[[Tensor], Tensor]) -> None:
    for step in range(STEPS):
        for index, p in enumerate(parameters):
            grad = gradient(p, step, index)
            p.grad = None if grad is None else split(grad)
        optimizer.step()


def differences(alone: Muon, shared: Muon) -> list[str]:
    """Return which weights and states are not the same to the bit."""
    pairs = [[p for group in one.param_groups for p in group["params"]] for one in (alone, shared)]
    found = []
    for index, (p, q) in enumerate(zip(*pairs, strict=True)):
        wanted, there = ({"weight": x.detach(), **one.state[x]} for x, one in ((p, alone), (q, shared)))
        assert wanted.keys() == there.keys()
        for key, value in wanted.items():
            same = torch.equal(value, whole(there[key])) if isinstance(value, Tensor) else value == there[key]
            found += [] if same else [f"{index} {key}"]
    return found


def compared(name: str, by_rows: bool) -> Found:
    """Take the steps alone and together, in this process."""
    division.LEAST, world = 0, dist.get_world_size()
    parameters = weights(NAMES[name])
    alone = Muon(groups(parameters), **SETTINGS)
    train(alone, parameters, torch.clone)
    split: Callable[[Tensor], Tensor] = torch.clone
    others, make = weights(NAMES[name]), partial(SharedMuon, processes=world)
    if by_rows:
        mesh = init_device_mesh("cpu", (world,))
        split = partial(distribute_tensor, device_mesh=mesh, placements=[Shard(0)], src_data_rank=None)
        others, make = [nn.Parameter(split(p.detach()), p.requires_grad) for p in others], ShardedMuon
    shared = make(groups(others), **SETTINGS)
    module = muon_rows if by_rows else muon_whole
    counted: list[int] = []

    def counting(updates: list[Tensor]) -> None:
        counted.append(len(updates))
        step_along(updates)

    with pytest.MonkeyPatch.context() as patch, Called() as called:
        patch.setattr(module, "step_along", counting)
        train(shared, others, split)
    return Found(differences(alone, shared), sum(counted), [call.name for call in called.calls])


def gathered(least: int) -> list[str]:
    """Return the collectives of a step over matrices that save no more FLOPs than `least`."""
    division.LEAST = least
    parameters = weights(UNEVEN)
    shared = SharedMuon(groups(parameters), processes=2)
    for index, p in enumerate(parameters):
        p.grad = gradient(p, 0, index)
    with Called() as called:
        shared.step()
    return [call.name for call in called.calls]


def of_two_nodes() -> tuple[list[int], bool]:
    """Return who shares with this process, and whether its steps are those of one process."""
    division.LEAST = 1
    parameters, others = weights(UNEVEN), weights(UNEVEN)
    alone, shared = Muon(groups(parameters)), SharedMuon(groups(others), processes=2)
    train(alone, parameters, torch.clone)
    train(shared, others, torch.clone)
    return dist.get_process_group_ranks(shared.sharing), not differences(alone, shared)


def everything(group: Any, processes: int) -> dict[Any, Any]:
    """Return all that this file asks of these processes, which take seconds to start."""
    found: dict[Any, Any] = {(name, by_rows): compared(name, by_rows) for name in NAMES for by_rows in (False, True)}
    if processes == 4:
        return {**found, "nodes": of_two_nodes()}
    return {**found, "much": gathered(1), "little": gathered(10**8)}


@cache
def of_each(processes: int) -> list[dict[Any, Any]]:
    """Return what each process found."""
    return together(processes, everything, processes)


@pytest.mark.parametrize("by_rows", [False, True], ids=["whole", "rows"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("processes", [2, 4])
def test_weights_and_state_are_those_of_one_process_to_the_bit(processes: int, name: str, by_rows: bool) -> None:
    found = [each[name, by_rows] for each in of_each(processes)]
    assert [one.other for one in found] == [[]] * processes
    # The first matrix has no gradient in the second step, and in the third nothing has one.
    taken = [len(NAMES[name])] * 3 + [len(NAMES[name]) - 1]
    assert sum(one.iterated for one in found) == sum(taken)
    assert all(one.iterated < sum(taken) for one in found) or name == "one"
    collective, times = ("alltoall_base_", 2) if by_rows else ("_allgather_base_", 1)
    wanted = times * sum(count > 0 for count in taken)
    assert all(one.calls.count(collective) == wanted == len(one.calls) for one in found)


def test_a_node_gathers_its_steps_and_sends_nothing_to_another_one() -> None:
    found = [each["nodes"] for each in of_each(4)]
    assert [ranks for ranks, _ in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert all(same for _, same in found)


def test_little_work_is_done_by_everybody_and_nothing_is_sent() -> None:
    assert [each["little"] for each in of_each(2)] == [[], []]
    assert [each["much"] for each in of_each(2)] == [["_allgather_base_"]] * 2


def test_the_processes_of_a_node_share_only_muon_and_only_where_there_are_several() -> None:
    muon, adamw = partial(Muon, lr=0.1), partial(AdamW, lr=0.1)
    strategy = ddp()
    for processes, make, wanted in ((2, muon, SharedMuon), (2, adamw, AdamW), (1, muon, Muon)):
        strategy.parallel_devices = [torch.device("cpu")] * processes
        chosen = Whole(strategy).choose_optimizer(make)
        assert (chosen.func, chosen.keywords["lr"]) == (wanted, 0.1)
        assert chosen.keywords.get("processes") == (2 if wanted is SharedMuon else None)
    assert Whole(SingleDeviceStrategy()).choose_optimizer(muon) is muon
