"""Products in FP8: the card's beside emulated ones, the loss beside bfloat16's, and the speed of a step beside both."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from gpu.check import Check
from gpu.proofs.speed import Size, batch, network, rounds, step
from subjects.fp8 import Trial, losses, parity
from torch import Tensor, nn

from videodiff.parallel.compile import compile_blocks
from videodiff.parallel.fp8 import FIRST, RECIPES, multiply_in_fp8

# Half the distance between two numbers of three bits, relative to the smaller one.
ROUNDING = 2.0**-4
# A card returns bfloat16, with eight bits, and adds up products of FP8 with fourteen.
CARD = 1e-2
# The loss with FP8 over the loss in bfloat16: the rounding of an output, uncorrelated with its error, adds its square.
PARITY = 0.05


def run(check: Check) -> None:
    """Compare products, then losses, then speed at width 2048."""
    real = check.cuda and torch.cuda.get_device_capability() >= FIRST
    if not real:
        check.note("no card that multiplies in FP8: all of it is emulated")
    for recipe in RECIPES:
        check.part(f"products, {recipe}", lambda r=recipe: compare_products(check, r, real))
    check.part("loss", lambda: compare_losses(check, real))
    if real or check.tiny:
        check.part("speed", lambda: compare_speed(check, real), 0 if check.tiny else 24)


def compare_products(check: Check, recipe: str, real: bool) -> None:
    """One linear layer with a number of rows that no product of a card may have: output and gradients."""
    width, rows = (64, 40) if check.tiny else (2048, 8 * 1023)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator).to(check.device, torch.bfloat16)
    layer = nn.Linear(width, 2 * width, device=check.device, dtype=torch.bfloat16)
    plain = answers(layer, x)
    emulated = answers(changed(layer, recipe, emulate=True), x)
    for name, made, wanted in zip(("output", "to input", "to weight"), emulated, plain, strict=True):
        check.near(f"{recipe}, emulated beside bfloat16: {name}", made, wanted, 2 * ROUNDING)
    if real:
        found = answers(changed(layer, recipe, emulate=False), x)
        for name, made, wanted in zip(("output", "to input", "to weight"), found, emulated, strict=True):
            check.near(f"{recipe}, the card's beside emulated: {name}", made, wanted, CARD)


def changed(layer: nn.Linear, recipe: str, emulate: bool) -> nn.Module:
    """Return a layer with the same weights whose products run in FP8."""
    holder = nn.Module()
    holder.blocks = nn.Sequential(layer)
    multiply_in_fp8(holder, recipe, least_width=1, keep=(), emulate=emulate)
    return holder.blocks[0]


def answers(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output of a layer, and the gradients of a fixed sum of it, to its input and to its weight."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator).to(out))
    return out.detach(), x.grad, layer.weight.grad.clone()


def compare_losses(check: Check, real: bool) -> None:
    """Train from equal weights on equal clips and noise; the curves of two seeds are a measure of chance."""
    trial = Trial(width=32, depth=2, clips=2, steps=4) if check.tiny else Trial(2048, 16, 4, 8, 32, 8, 60, 2e-4)
    device, seeds = check.device.type, (0,) if check.tiny else (0, 1)
    plain = [losses(trial, seed, half=True, device=device) for seed in seeds]
    for recipe in RECIPES:
        made = [losses(trial, seed, recipe, True, device, emulate=not real) for seed in seeds]
        ratios = [parity(a, b) for a, b in zip(made, plain, strict=True)]
        check.figure(f"{recipe}: loss over bfloat16's, last quarter of {trial.steps} steps", statistics.fmean(ratios))
        check.figure(f"{recipe}: the same, range over seeds ({len(seeds)})", f"{min(ratios):.5f} to {max(ratios):.5f}")
        check.hold(f"{recipe}: loss within {PARITY:.0%}", all(abs(r - 1) < PARITY for r in ratios), f"{ratios}")


def compare_speed(check: Check, real: bool) -> None:
    """Four blocks of width 2048 on 16 clips' latents of 16 x 256 x 256, forward and backward, compiled, in turns."""
    size = Size("4 blocks of width 2048", 2048, 4, 16, 16, 32)
    if check.tiny:
        size = size._replace(width=32, depth=2, heads=2, frames=2, side=4)
    inputs = batch(check, size, 2 if check.tiny else 16)
    works: dict[str, Callable[[], Tensor]] = {}
    for name in ("bfloat16", *RECIPES):
        made = network(check, size)
        if name != "bfloat16":
            multiply_in_fp8(made, name, least_width=32 if check.tiny else 2048, emulate=not real)
        if real:
            compile_blocks(made, dynamic=False)
        works[name] = partial(step, made, inputs)
    taken, peaks = rounds(check, works)
    tokens = inputs["z"].shape[0] * size.tokens[0] * size.tokens[1]
    for name, seconds in taken.items():
        check.figure(f"{size.name}, {name}: tokens a second", tokens / seconds)
        check.figure(f"{size.name}, {name}: peak memory alone, GiB", peaks[name])
        if name != "bfloat16" and "bfloat16" in taken:
            check.figure(f"{size.name}, {name}: times as fast as bfloat16", taken["bfloat16"] / seconds)
