"""Our Muon against torch's, or shared by processes against done by each: the ratio of time a step.

    python bench/muon.py [--width 64] [--blocks 6] [--steps 30] [--device cpu] [--processes 2]

torch's optimizer gets the matrices alone and keeps no average, so its time is a lower bound; how far the weights part
is printed too. Several processes take one thread each, and hold whole matrices (as under DDP) or rows of them (as under
FSDP2): either each iterates all of them, or they share it. The weights must be the same to the bit. Processor time
counts the threads that send; on a busy machine the clock counts other jobs too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from bench.sequence import together
from videodiff.machine import keep_freed_memory
from videodiff.parallel.fsdp.engine import whole as full
from videodiff.parallel.muon.rows import ShardedMuon
from videodiff.parallel.muon.whole import SharedMuon
from videodiff.training.optimizer import Muon, step_along


def main() -> None:
    """Step both on the same gradients in turn, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    if asked.processes > 1:
        print("\n".join(together(asked.processes, shared, asked)[0]))
    else:
        compare(asked)


def compare(asked: argparse.Namespace) -> None:
    """Step ours and torch's in turn."""
    keep_freed_memory()
    shapes = shapes_of(asked)
    start = noise(shapes, 0, asked.device)
    ours, torchs = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    made = {
        "ours": (ours, Muon([{"params": ours, "matrix": True}], lr=1e-3)),
        "torch": (torchs, torch.optim.Muon(torchs, lr=1e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for step in range(asked.steps):
        grads = noise(shapes, 1 + step, asked.device)
        for name, (parameters, optimizer) in made.items():
            for p, grad in zip(parameters, grads, strict=True):
                p.grad = grad.clone()
            seconds[name].append(timed(optimizer))
    moved = torch.cat([(p - q).detach().flatten() for p, q in zip(ours, start, strict=True)])
    other = torch.cat([(p - q).detach().flatten() for p, q in zip(torchs, start, strict=True)])
    # The first steps allocate.
    ratios = [a / b for a, b in zip(seconds["ours"][3:], seconds["torch"][3:], strict=True)]
    for name, values in seconds.items():
        print(f"{name:<6} {statistics.median(values[3:]) * 1e3:9.2f} ms a step")
    print(f"ratio  {statistics.median(ratios):9.2f} ours / torch, median of {len(ratios)} steps")
    print(f"apart  {float((moved - other).norm() / moved.norm()):9.4f} of the way of the weights")


class Gathering(Muon):
    """Muon over rows where each process gathers and iterates all matrices."""

    def replace(self, updates: list[Tensor]) -> None:
        """Gather, iterate, and keep the rows of this process."""
        steps = [update.full_tensor() for update in updates]
        step_along(steps)
        updates[:] = [
            distribute_tensor(step, update.device_mesh, update.placements, src_data_rank=None)
            for step, update in zip(steps, updates, strict=True)
        ]


def shared(group: object, asked: argparse.Namespace) -> list[str]:
    """Step in turn, in this process, optimizers that do everything and ones that share the work; return lines."""
    keep_freed_memory()
    shapes, world = shapes_of(asked), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    split = partial(distribute_tensor, device_mesh=mesh, placements=[Shard(0)], src_data_rank=None)
    kinds = {
        "whole": (Tensor.clone, Muon),
        "whole, shared": (Tensor.clone, partial(SharedMuon, processes=world)),
        "rows": (split, Gathering),
        "rows, shared": (split, ShardedMuon),
    }
    made, spent = {}, {name: [] for name in kinds}
    for name, (hold, make) in kinds.items():
        parameters = [nn.Parameter(hold(p)) for p in noise(shapes, 0, "cpu")]
        made[name] = (parameters, make([{"params": parameters, "matrix": True}], lr=1e-3))
    for step in range(asked.steps):
        grads = noise(shapes, 1 + step, "cpu")
        for name, (parameters, optimizer) in made.items():
            for p, grad in zip(parameters, grads, strict=True):
                p.grad = kinds[name][0](grad)
            dist.barrier()
            began = time.perf_counter(), time.process_time()
            optimizer.step()
            spent[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return [f"{'':<14} ms a step, ms of processor; both beside whole"] + [
        line(name, values[3:], spent["whole"][3:], made["whole"][0], made[name][0]) for name, values in spent.items()
    ]


def line(
    name: str,
    spent: list[tuple[float, float]],
    plain: list[tuple[float, float]],
    wanted: list[Tensor],
    found: list[Tensor],
) -> str:
    """Return the medians of an optimizer's times, and their ratios in the same steps."""
    times = [1e3 * statistics.median(column) for column in zip(*spent, strict=True)]
    ratios = [
        statistics.median(one[kind] / other[kind] for one, other in zip(spent, plain, strict=True)) for kind in (0, 1)
    ]
    same = all(torch.equal(p, full(q)) for p, q in zip(wanted, found, strict=True))
    bits = "equal to the bit" if same else "not equal"
    return f"{name:<14} {times[0]:8.2f} {times[1]:8.2f}  {ratios[0]:.2f} {ratios[1]:.2f}  weights {bits}"


def shapes_of(asked: argparse.Namespace) -> list[tuple[int, int]]:
    """Return the shapes of the matrices of all blocks."""
    shapes = [(3, 1), (1, 1), (4, 1), (1, 4)] * asked.blocks
    return [(rows * asked.width, columns * asked.width) for rows, columns in shapes]


def noise(shapes: list[tuple[int, int]], seed: int, device: str) -> list[torch.Tensor]:
    """Return normal matrices, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def timed(optimizer: torch.optim.Optimizer) -> float:
    """Return the seconds of a step: of this process on a CPU, by the clock on CUDA."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = clock()
    optimizer.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


if __name__ == "__main__":
    main()
