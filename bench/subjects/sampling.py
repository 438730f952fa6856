"""Clips a second of the demo's network by sampler and number of steps, beside as many forward passes of Latte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from subjects.denoiser import SMALL, Size, build_ours, latte_forward, like_ours
from subjects.harness import Figure, Settings, figure, ratio, turns

from videodiff.diffusion.path import RectifiedFlow
from videodiff.diffusion.sampler import Sampler, dpm_solver_2m, euler, flow_map, heun
from videodiff.generation.settings import Generation, Network, clip_noise

TITLE = "Sampling"
# How each is used: steps, the scale of guidance, and how often a step asks the network about each clip.
WAYS: list[tuple[Sampler, int, float, int]] = [
    (euler, 8, 2.0, 2),
    (euler, 30, 2.0, 2),
    (heun, 15, 2.0, 4),
    (dpm_solver_2m, 30, 2.0, 2),
    (flow_map, 4, 1.0, 1),
    (flow_map, 1, 1.0, 1),
]


def measure(settings: Settings) -> Iterator[Figure]:
    """Yield for each way to sample its clips a second, and Latte's time for as many passes divided by its own."""
    torch.manual_seed(0)
    size = SMALL._replace(clips=1, blocks=2, frames=2, side=8) if settings.tiny else SMALL
    ways = WAYS[-1:] if settings.tiny else WAYS
    works = {name_of(*way): sampling(size, *way) for way in ways}
    latte = latte_forward(size, like_ours(size).eval())
    with torch.no_grad():
        taken = turns({**works, "Latte": lambda: [latte() for _ in range(4)]}, settings.rounds)
    pass_of_latte = [seconds / 4 for seconds in taken["Latte"]]
    for way in ways:
        sampler, steps, _, asked = way
        # At the last step Heun's method asks once.
        passes = steps * asked - (asked // 2 if sampler is heun else 0)
        name, own = name_of(*way), taken[name_of(*way)]
        key = f"vs_latte_{sampler.__name__}_{steps}"
        yield ratio(f"{name}: times as fast as {passes} passes of Latte", [p * passes for p in pass_of_latte], own, key)
        yield figure(f"{name}: clips a second", [size.clips / seconds for seconds in own])


def name_of(sampler: Sampler, steps: int, scale: float, asked: int) -> str:
    """Return what a way to sample is called."""
    return f"{sampler.__name__}, {steps} step{'s' if steps > 1 else ''}{', guided' if scale != 1 else ''}"


def sampling(size: Size, sampler: Sampler, steps: int, scale: float, asked: int) -> Callable[[], torch.Tensor]:
    """Return what samples a batch."""
    network, _, condition = build_ours(size, step_rank=16 if sampler is flow_map else 0)
    noise = clip_noise((size.channels, size.frames, size.side, size.side), range(size.clips))
    null = {"text": condition["text"][:1], "text_mask": condition["text_mask"][:1]}
    generation = Generation(sampler, steps=steps, shift=5.0, scale=scale)
    return partial(generation, Network(network.eval(), condition, null, RectifiedFlow(), "x"), noise)
