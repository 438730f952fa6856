"""The demo's recipe through `videodiff train`: 20 steps beside the CPU's, continued, sampled and evaluated."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gpu.check import Check, fixed_order, seconds_of, videodiff, watched
from gpu.footage import world_dataset
from gpu.watch import Watch
from safetensors.torch import load_file

from videodiff.data.loader.stream import collate
from videodiff.data.loader.workers import Read
from videodiff.diffusion.objective import Objective
from videodiff.training.state.checkpoint import AVERAGE, latest_checkpoint
from videodiff.worlds.bouncing import Bouncing

# How far a curve may lie from that of a CPU in float32. Steps amplify rounding: in bfloat16 a CPU's own lies 1e-2 away.
MOST = {"32-true": 1e-3, "bf16-mixed": 5e-2}


def run(check: Check) -> None:
    """Train, continue, train with workers, sample, evaluate; then the copies."""
    os.chdir(check.scratch)
    shutil.rmtree("runs/demo", ignore_errors=True)
    size, clips = (16, 24) if check.tiny else (20, 256)
    world = Bouncing(balls={1: 1, 2: 0, 3: 0}, split="all")
    steps = 6 if check.tiny else 20
    data = world_dataset(check.scratch / f"bouncing_{size}", world, clips, size)
    on_device = curve(check, "device", data, steps, *there(check))
    check.part("curve beside the CPU's", lambda: beside_cpu(check, on_device, data, steps))
    check.part("resume", lambda: resumed(check, data, steps))
    check.part("workers", lambda: with_workers(check, on_device, data, steps))
    check.part("sample", lambda: sampled(check))
    check.part("evaluate", lambda: evaluated(check, data))
    check.part("copies", lambda: copies(check))


def recipe(check: Check, data: Path, steps: int, name: str) -> list[str]:
    """Return the overrides of the demo at this size; a constant schedule, which does not look at the last step."""
    small = [
        "model.width=32",
        "model.depth=2",
        "text.width=32",
        "data.height=16",
        "data.width=16",
        "data.global_batch=4",
    ]
    return [
        "experiment=bouncing_cpu",
        f"run=runs/demo/{name}",
        f"data.root={data}",
        "data.validation_root=null",
        f"trainer.max_steps={steps}",
        "schedule=constant",
        "~schedule.decay",
        "schedule.warmup=4",
        "text.max_words=25",
        f"callbacks.checkpoints.every={steps // 2}",
        "callbacks.checkpoints.keep=0",
        *fixed_order(),
        *(small if check.tiny else []),
    ]


def there(check: Check, precision: str = "bf16-mixed") -> list[str]:
    return [f"trainer.precision={precision}", "trainer.accelerator=cuda" if check.cuda else "trainer.accelerator=cpu"]


def curve(check: Check, name: str, data: Path, steps: int, *more: str) -> list[float]:
    """Train and return the loss of every step."""
    watch = Watch()
    with watched(watch):
        videodiff("train", *recipe(check, data, steps, name), *more)
    check.hold(f"{name}: one loss a step", len(watch.losses) == steps, str(len(watch.losses)))
    return watch.curve()


def beside_cpu(check: Check, on_device: list[float], data: Path, steps: int) -> None:
    """Compare curves at the same noise; a GPU draws another one, which alone moves a loss of 16 clips by 1e-2."""
    wanted = curve(check, "cpu", data, steps, "trainer.accelerator=cpu")
    check.figure("greatest distance of the curve from the CPU's", distance(on_device, wanted))
    draw = Objective.draw

    def on_host(self: Objective, clip: torch.Tensor, seed: int) -> tuple[torch.Tensor, ...]:
        tau, eps, dropped = draw(self, clip.cpu(), seed)
        return tau, eps.to(clip.device), dropped

    Objective.draw = on_host
    try:
        for precision, most in MOST.items():
            apart = distance(curve(check, precision, data, steps, *there(check, precision)), wanted)
            check.figure(f"the same at the CPU's noise in {precision}", apart)
            what = f"the curve at the CPU's noise in {precision} is within {most:g} of the CPU's"
            check.hold(what, apart < most, f"{apart:.4g}")
    finally:
        Objective.draw = draw
    check.figure("first and last loss", f"{on_device[0]:.4f} {on_device[-1]:.4f}")
    check.hold("the loss falls", on_device[-1] < on_device[0], f"{on_device[0]:.4f} to {on_device[-1]:.4f}")


def distance(found: list[float], wanted: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True))


def resumed(check: Check, data: Path, steps: int) -> None:
    """Take the second half again from the checkpoint in the middle: the same weights to the bit."""
    whole, half = Path("runs/demo/device"), Path("runs/demo/half")
    shutil.copytree(whole, half)
    shutil.rmtree(latest_checkpoint(half))
    overrides = [f"resume={half}", *[o for o in recipe(check, data, steps, "half") if not o.startswith(("run=", "~"))]]
    videodiff("train", *overrides, *there(check))
    wanted, found = (load_file(latest_checkpoint(folder) / AVERAGE) for folder in (whole, half))
    apart = [name for name in wanted if not torch.equal(wanted[name], found[name])]
    check.hold(
        "a resumed run ends with the same weights to the bit", not apart, f"{len(apart)} others, first {apart[:1]}"
    )


def with_workers(check: Check, on_device: list[float], data: Path, steps: int) -> None:
    """Decode in processes beside the device: the same curve to the bit."""
    workers = 1 if check.tiny else 4
    found = curve(check, "workers", data, steps, *there(check), f"data.num_workers={workers}", "data.cache_gib=0.0")
    check.hold(f"{workers} decode workers give the same curve to the bit", found == on_device)


def sampled(check: Check) -> None:
    said = videodiff("sample", "runs/demo/device", 'prompts=["a red ball moves left slowly"]', "steps=2")
    check.hold("sample writes a clip", Path("runs/demo/device/generated/000.mp4").stat().st_size > 0, said[-200:])


def evaluated(check: Check, data: Path) -> None:
    clips = 2 if check.tiny else 32
    how = [f"dataset={data}", f"clips={clips}", "batch=16", "steps=2", "keep=1"]
    videodiff("evaluate", "runs/demo/device", *how)
    check.hold("evaluate writes its figures", Path("runs/demo/device/evaluation.json").is_file())


def copies(check: Check) -> None:
    """Batches come in pinned memory on CUDA; a copy from there is no slower than one from other memory."""
    frames = np.random.default_rng(0).integers(0, 255, (2, 4, 16, 16, 3), dtype=np.uint8)
    tasks = [SimpleNamespace(order=(0, i)) for i in range(2)]
    batch = collate(Read(frames, [{"caption": "", "key": "", "fps": 8.0}] * 2, tasks))
    check.hold("batches are pinned exactly on CUDA", batch["video"].is_pinned() == check.cuda)
    there = batch["video"].to(check.device, non_blocking=True).cpu()
    check.hold("a pinned copy brings every byte", torch.equal(there, torch.from_numpy(frames).permute(0, 4, 1, 2, 3)))
    plain = torch.empty((1 if check.tiny else 256) * 2**20, dtype=torch.uint8)
    pinned: Any = plain.pin_memory() if check.cuda else plain
    for name, source in (("pinned", pinned), ("other", plain)):
        seconds = seconds_of(lambda source=source: source.to(check.device, non_blocking=True, copy=True), check.device)
        check.figure(f"copy to the device from {name} memory, GB/s", len(source) / seconds / 1e9)
