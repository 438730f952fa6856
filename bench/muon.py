"""Our Muon against torch's, in one process: the ratio of time a step, and how far the weights part.

    python bench/muon.py [--width 64] [--blocks 6] [--steps 30] [--device cpu]

torch's optimizer gets the matrices alone and keeps no average, so its time is a lower bound.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from videodiff.training.optimizer import Muon


def main() -> None:
    """Step both on the same gradients in turn, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    shapes = [(3, 1), (1, 1), (4, 1), (1, 4)] * asked.blocks
    shapes = [(rows * asked.width, columns * asked.width) for rows, columns in shapes]
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
