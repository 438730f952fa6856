"""Measure this machine at the size of the demo: clips a second encoded, decoded, and trained on by one process.

python bench/speed.py
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import torch

from videodiff.data.video.decode import decode
from videodiff.data.video.encode import encode
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.diffusion.path import RectifiedFlow
from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.scene import render

FRAMES, SIZE, BATCH, SECONDS = 8, 20, 16, 5.0


def rate(work: Callable[[], object], clips: int) -> float:
    """Return clips a second of `work`, which does so many at once: repeated for some seconds after a warm-up."""
    work()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        work()
        done += clips
    return done / (time.perf_counter() - start)


def training(device: str) -> Callable[[], object]:
    """Return one training step without its optimizer: forward and backward of the demo's network."""
    torch.manual_seed(0)
    denoiser = SpaceTimeTransformer(patch=(1, 4, 4), width=64, depth=6, heads=2, text_width=64).to(device)
    objective = Objective(RectifiedFlow(), NoiseLevels(), prediction="x")
    x = torch.randn(BATCH, 3, FRAMES, SIZE, SIZE, device=device)
    words = torch.randn(BATCH, 12, 64, device=device)
    mask = torch.ones(BATCH, 12, dtype=torch.bool, device=device)
    condition = {"text": words, "text_mask": mask, "fps": torch.full((BATCH,), 5.0, device=device)}

    def step() -> float:
        denoiser.zero_grad()
        loss = objective(denoiser, x, condition, {}, clip_seeds(0, 0, range(BATCH))).mean()
        loss.backward()
        return loss.item()

    return step


def main() -> None:
    """Print one line a measurement."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frames = render(Bouncing(frames=FRAMES).scene(0), SIZE)
    video = encode(frames, 5.0)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"clips of {FRAMES} frames of {SIZE} x {SIZE} pixels; a second:")
    print(f"  encode  {rate(lambda: encode(frames, 5.0), 1):8.0f}   (one core)")
    print(f"  decode  {rate(lambda: decode(video, range(FRAMES)), 1):8.0f}   (one core)")
    print(f"  train   {rate(training(device), BATCH):8.0f}   (forward and backward on {device})")


if __name__ == "__main__":
    main()
