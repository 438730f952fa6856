"""What products in FP8 do to the loss: the same weights, clips and noise with FP8 and without, emulated on a CPU."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from subjects.harness import Figure, Settings, figure
from torch import Tensor, nn

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.diffusion.path import RectifiedFlow
from videodiff.parallel.fp8 import RECIPES, multiply_in_fp8
from videodiff.training.module import parameter_groups
from videodiff.training.optimizer import AdamW
from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.scene import render

TITLE = "Loss with products in FP8 beside the loss without, emulated"


class Trial(NamedTuple):
    """A small training: a network, clips of `frames` x `pixels` x `pixels` of the bouncing world, and steps."""

    width: int = 64
    heads: int = 2
    depth: int = 4
    frames: int = 8
    pixels: int = 16
    clips: int = 4
    steps: int = 100
    rate: float = 1e-3


def measure(settings: Settings) -> Iterator[Figure]:
    """Yield the ratios of losses by recipe, with bfloat16 for comparison; the spread is over starts and draws."""
    trial = Trial(width=16, depth=2, clips=2, steps=4) if settings.tiny else Trial()
    found: dict[str, list[float]] = {name: [] for name in ("bfloat16", *RECIPES)}
    for seed in range(settings.rounds):
        plain = losses(trial, seed)
        for name, ratios in found.items():
            recipe = None if name == "bfloat16" else name
            ratios.append(parity(losses(trial, seed, recipe, half=recipe is None), plain))
    for name, ratios in found.items():
        what = "bfloat16, no FP8" if name == "bfloat16" else f"FP8 {name}, else float32"
        aim, apart = "" if name == "bfloat16" else "-2 to 2", [100 * (ratio - 1) for ratio in ratios]
        yield figure(
            f"{what}: percent above the loss of float32, last quarter of {trial.steps} steps", apart, name, aim
        )


def losses(
    trial: Trial, seed: int, recipe: str | None = None, half: bool = False, device: str = "cpu", emulate: bool = True
) -> list[float]:
    """Return the loss of every step; the seed alone decides weights, clips and noise. `half`: autocast to bfloat16."""
    made = network(trial, seed).to(device)
    if recipe:
        multiply_in_fp8(made, recipe, least_width=1, emulate=emulate)
    optimizer = AdamW(parameter_groups(made.named_parameters()), lr=trial.rate)
    objective, found = Objective(RectifiedFlow(), NoiseLevels(), "x", "v"), []
    for step in range(trial.steps):
        x, seeds = batch(trial, seed, step).to(device), clip_seeds(seed, step, range(trial.clips))
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = objective(made, x, condition(trial, device), {}, seeds).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found).tolist()


def network(trial: Trial, seed: int) -> nn.Module:
    """Return the network with its first weights; with open gates all layers count from the first step."""
    torch.manual_seed(seed)
    return SpaceTimeTransformer(3, (1, 4, 4), trial.width, trial.depth, trial.heads, text_width=16, gate=0.1)


@cache
def batch(trial: Trial, seed: int, step: int) -> Tensor:
    """Return clips `b c t h w` between -1 and 1."""
    world, first = Bouncing(split="all"), 1_000_000 * seed + step * trial.clips
    clips = [render(world.scene(first + i), trial.pixels)[: trial.frames] for i in range(trial.clips)]
    return torch.stack([torch.from_numpy(clip).permute(3, 0, 1, 2) / 127.5 - 1 for clip in clips])


def condition(trial: Trial, device: str) -> dict[str, Tensor]:
    """Return an empty caption and the rate of the frames."""
    text, fps = torch.zeros(trial.clips, 1, 16, device=device), torch.full((trial.clips,), 8.0, device=device)
    return {"text": text, "text_mask": torch.ones(trial.clips, 1, dtype=torch.bool, device=device), "fps": fps}


def parity(with_fp8: list[float], without: list[float]) -> float:
    """Return the mean loss of the last quarter of both curves as a ratio."""
    last = max(1, len(without) // 4)
    return statistics.fmean(with_fp8[-last:]) / statistics.fmean(without[-last:])
