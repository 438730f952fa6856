"""Three processes save each value once under every layout, and fill any other layout with it.

Nothing divides by three: a matrix of 5 rows, one of 2, which leaves a process without a row, and a weight of one value.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from bench.sequence import together
from videodiff.parallel.fsdp.engine import FsdpEngine
from videodiff.parallel.zero.engine import ZeroEngine, split_weight
from videodiff.training.optimizer import AdamW
from videodiff.training.state.pieces import Piece, kept
from videodiff.training.state.saved import Saved
from videodiff.training.state.saving import write_pieces

# The last one keeps a second copy of the weights on the processes of each node, here on all three.
LAYOUTS = ("zero1", "zero2", "zero3", "fsdp2", "copies3")
STEPS = 2


class Small(nn.Module):
    """Three trained layers, a frozen one, and a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.down, self.frozen = nn.Linear(7, 5), nn.Linear(5, 2), nn.Linear(2, 4)
        self.last = nn.Linear(4, 1)
        self.frozen.requires_grad_(False)
        self.register_buffer("offset", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map `b 7` to `b 1`."""
        return self.last(self.frozen(self.down(self.up(x).tanh())) + self.offset)


def groups(network: nn.Module) -> list[dict[str, Any]]:
    """Return two groups of parameters."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return [{"params": trained[:2]}, {"params": trained[2:], "weight_decay": 0.0}]


def given(step: int) -> Tensor:
    """Return the input of a step, the same on all processes."""
    return torch.randn(6, 7, generator=torch.Generator().manual_seed(step))


def begun(layout: str, seed: int) -> tuple[nn.Module, Any, Any]:
    """Return the network under a layout, its engine, and what takes its steps."""
    network = Small(seed)
    strategy = SimpleNamespace(global_rank=dist.get_rank(), world_size=3, lightning_module=network)
    if layout == "fsdp2":
        fully_shard(network, mesh=init_device_mesh("cpu", (3,)))
        strategy.optimizers = [AdamW(groups(network), lr=0.1, ema_decay=0.9)]
        return network, FsdpEngine(strategy), strategy.optimizers[0]
    import deepspeed

    stage = int(layout[-1])
    # At most 4 values are kept whole.
    zero = {"stage": stage, "stage3_param_persistence_threshold": 4}
    zero |= {"zero_hpz_partition_size": 3} if layout == "copies3" else {}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "gradient_clipping": 0.0}
    config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    for p in network.parameters() if stage == 3 else ():
        split_weight(p, config)
    optimizer = AdamW(groups(network), lr=0.1, ema_decay=0.9)
    trainer, zero, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
    strategy.optimizers = [zero]
    return network, ZeroEngine(strategy, stage), trainer


def advance(network: nn.Module, takes_steps: Any, step: int) -> None:
    """Take one step."""
    if isinstance(takes_steps, AdamW):
        network(given(step)).square().mean().backward()
        takes_steps.step()
        takes_steps.zero_grad()
    else:
        takes_steps.backward(takes_steps(given(step)).square().mean())
        takes_steps.step()


def outputs(network: nn.Module, engine: Any) -> list[list[float]]:
    """Return what the network gives with its weights, with their averages, and with its weights again."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    with torch.no_grad():
        # A pass without gradients may leave whole weights behind.
        before = network(given(99))
        with engine.exchanged(parameters):
            within = network(given(99))
        return [made.flatten().tolist() for made in (before, within, network(given(99)))]


def told(pieces: list[Piece]) -> list[tuple[str, str, int, list[float]]]:
    """Return pieces as plain values."""
    return [(one.name, one.key, one.start, one.values.double().tolist()) for one in pieces]


def everything(_: Any, folder: Path) -> dict[str, Any]:
    """Train under each layout and save, then fill each layout with what the one before saved, and go on."""
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    found: dict[Any, Any] = {}
    for layout in LAYOUTS:
        network, engine, takes_steps = begun(layout, seed=0)
        found[f"{layout} outputs", 0] = outputs(network, engine)
        for step in range(STEPS):
            advance(network, takes_steps, step)
        found[f"{layout} weights"] = float(sum(part.double().square().sum() for part in engine.weights()))
        found[f"{layout} outputs", STEPS] = outputs(network, engine)
        pieces = engine.pieces(network)
        found[layout] = told(pieces)
        write_pieces(pieces, {}, folder / f"{layout}_{dist.get_rank()}.safetensors")
    dist.barrier()
    for before, layout in zip(LAYOUTS, (*LAYOUTS[1:], LAYOUTS[0]), strict=True):
        network, engine, takes_steps = begun(layout, seed=1)
        # A step of its own, after which ZeRO 3 keeps small weights whole, is forgotten.
        advance(network, takes_steps, 9)
        engine.load(network, Saved(folder / f"{before}_{rank}.safetensors" for rank in range(3)))
        found[f"{layout} after {before}"] = told(engine.pieces(network))
        found[f"{layout} outputs", f"after {before}"] = outputs(network, engine)
        advance(network, takes_steps, STEPS)
        found[f"{layout} goes on"] = told(engine.pieces(network))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three processes found."""
    return together(3, everything, tmp_path_factory.mktemp("pieces"))


def trained(steps: int) -> tuple[Small, AdamW]:
    """Return network and optimizer after so many steps of one process."""
    network = Small(0)
    optimizer = AdamW(groups(network), lr=0.1, ema_decay=0.9)
    for step in range(steps):
        advance(network, optimizer, step)
    return network, optimizer


def alone(steps: int) -> dict[tuple[str, str], list[float]]:
    """Return all values after so many steps of one process."""
    network, optimizer = trained(steps)
    values = {(name, "weight"): value for name, value in kept(network).items()}
    for name, p in network.named_parameters():
        values |= {(name, key): torch.as_tensor(value) for key, value in optimizer.state.get(p, {}).items()}
    return {place: value.detach().double().flatten().tolist() for place, value in values.items()}


def joined(found: list[dict[str, Any]], name: str) -> Iterator[tuple[tuple[str, str], list[float]]]:
    """Yield each tensor of all processes; each of its values is there once."""
    pieces = sorted(piece for rank in found for piece in rank[name])
    for place in sorted({piece[:2] for piece in pieces}):
        values: list[float] = []
        for *_, start, part in (piece for piece in pieces if piece[:2] == place):
            assert start == len(values), f"{name}: {place}"
            values += part
        yield place, values


AFTER = [f"{layout} after {before}" for before, layout in zip(LAYOUTS, (*LAYOUTS[1:], LAYOUTS[0]), strict=True)]
GOING_ON = [f"{layout} goes on" for layout in LAYOUTS]


@pytest.mark.parametrize("name", [*LAYOUTS, *AFTER, *GOING_ON])
def test_the_pieces_of_all_are_the_values_of_one_process_each_once(found: list[dict[str, Any]], name: str) -> None:
    wanted = alone(STEPS + (name in GOING_ON))
    pieces = dict(joined(found, name))
    assert pieces.keys() == wanted.keys()
    for place, values in pieces.items():
        assert values == pytest.approx(wanted[place], rel=1e-5, abs=1e-6), f"{name}: {place}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_averages_take_the_place_of_weights_for_a_while(found: list[dict[Any, Any]], layout: str) -> None:
    before = LAYOUTS[LAYOUTS.index(layout) - 1]
    for steps, name in ((0, 0), (STEPS, STEPS), (STEPS, f"after {before}")):
        network, optimizer = trained(steps)
        by_weights = network(given(99)).flatten().tolist()
        for p, state in optimizer.state.items():
            p.data.copy_(state["ema"])
        by_averages = network(given(99)).flatten().tolist()
        assert (by_averages == pytest.approx(by_weights, abs=1e-3)) == (steps == 0)
        wanted = [by_weights, by_averages, by_weights]
        for rank in found:
            for made, one in zip(rank[f"{layout} outputs", name], wanted, strict=True):
                assert made == pytest.approx(one, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_trained_weight_is_looked_at_before_it_is_kept(found: list[dict[Any, Any]], layout: str) -> None:
    network, _ = trained(STEPS)
    wanted = float(sum(p.double().square().sum() for p in network.parameters() if p.requires_grad).detach())
    seen = [rank[f"{layout} weights"] for rank in found]
    # Either all of them on every process, or each on one.
    split = layout in ("zero3", "fsdp2", "copies3")
    for one in [sum(seen)] if split else seen:
        assert one == pytest.approx(wanted)
