"""The recipe uniform_gpu for the minutes that are left: velocity error in and out of distribution as it falls."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from gpu.check import Check, videodiff, watched
from gpu.watch import Watch

from videodiff.data.samples.shards import ShardWriter, clip_sample
from videodiff.data.video.decode import probe
from videodiff.training.state.checkpoint import checkpoints
from videodiff.worlds.uniform import Uniform

PAPER = "DiT-S, 30K clips: 0.022 in distribution; out of distribution 0.433 (DiT-B), 0.328 at best (arXiv 2411.02385)"


def run(check: Check) -> None:
    """Make the clips, find out how long a step takes, train as many as there is time for, evaluate."""
    os.chdir(check.scratch)
    shutil.rmtree("runs/uniform", ignore_errors=True)
    train = dataset(check, "train", 24 if check.tiny else 30000, [])
    known = dataset(check, "in_distribution", 4 if check.tiny else 128, ["world.split=in_distribution"])
    beyond = dataset(check, "out_of_distribution", 4 if check.tiny else 128, ["world.split=out_of_distribution"])
    watch, trial = Watch(timed=True), 4 if check.tiny else 40
    with watched(watch):
        videodiff("train", *recipe(check, "trial", train, trial))
    work, between = watch.waited(trial // 2)
    seconds = (work + between) / (trial - trial // 2)
    check.figure("seconds a step", seconds)
    check.figure("share of the time waiting for data", between / (work + between))
    check.figure("peak memory, GiB", watch.peak)
    # A start of training, and at the end three evaluations of two datasets.
    spare = 0 if check.tiny else 15 + 6 * 12
    steps = 4 if check.tiny else min(7000, int((check.left - spare) / seconds))
    if steps < 4:
        check.note(f"passed over: {check.left:.0f} s left, a step takes {seconds:.2f} s")
        return
    watch = Watch()
    with watched(watch):
        videodiff("train", *recipe(check, "run", train, steps))
    check.figure("steps, of 7000 of the recipe", steps)
    curve = watch.curve()
    check.hold("the last loss is finite", abs(curve[-1]) < 1e6, str(curve[-1]))
    for checkpoint in reversed(checkpoints(Path("runs/uniform/run"))):
        for name, data in (("in", known), ("out of", beyond)):
            what = f"step {int(checkpoint.name[5:])}, {name} distribution"
            if check.left < (0 if check.tiny else 12):
                check.note(f"{what}: not evaluated, {check.left:.0f} s left")
                continue
            check.part(what, lambda w=what, c=checkpoint, d=data: evaluated(check, w, c, d))
    check.note(f"to compare with: {PAPER}")


def dataset(check: Check, name: str, clips: int, more: list[str]) -> Path:
    """Return a dataset made as the header of the recipe says."""
    root = check.scratch / f"uniform_{name}"
    if not (root / "manifest.parquet").is_file():
        loose = check.scratch / f"uniform_{name}_clips"
        shutil.rmtree(loose, ignore_errors=True)
        workers = ["workers=1"] if check.tiny else []
        size = 16 if check.tiny else 64
        videodiff("simulate", "world=uniform", f"out={loose}", f"clips={clips}", f"size={size}", *more, *workers)
        shards(loose, root)
    return root


def shards(loose: Path, root: Path) -> None:
    """Put clips that were just made into shards as they are; `videodiff pack` would hold each beside decord."""
    with ShardWriter(root) as writer:
        for path in sorted(loose.glob("*.mp4")):
            video, notes = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
            caption = path.with_suffix(".txt").read_text()
            writer.add(path.stem, *clip_sample(video, probe(video), [caption], truth=notes["truth"]))
    (root / "words.txt").write_text("".join(f"{word}\n" for word in Uniform().words()))


def recipe(check: Check, name: str, data: Path, steps: int) -> list[str]:
    """Return the overrides of a run of so many steps; its schedule ends with them."""
    small = ["model.width=32", "model.depth=2", "model.heads=2", "data.global_batch=2", "data.num_workers=0"]
    small += ["data.height=16", "data.width=16", "data.frames=8", "schedule.warmup=1"]
    return [
        *("experiment=uniform_gpu", f"run=runs/uniform/{name}", f"data.root={data}", "data.validation_root=null"),
        *(f"trainer.max_steps={steps}", f"trainer.accelerator={check.device.type}", "~callbacks.samples"),
        *(f"callbacks.checkpoints.every={steps if check.tiny else max(steps // 3, 1)}", "callbacks.checkpoints.keep=0"),
        *(small if check.tiny else []),
    ]


def evaluated(check: Check, what: str, checkpoint: Path, data: Path) -> None:
    """Record the velocity error of a checkpoint."""
    clips = 2 if check.tiny else 128
    videodiff(
        "evaluate",
        *("runs/uniform/run", f"checkpoint={checkpoint}", f"dataset={data}", f"clips={clips}"),
        *("tasks=[continuation]", "batch=128", "keep=0"),
    )
    found = json.loads(Path("runs/uniform/run/evaluation.json").read_text())
    for key in ("velocity_error", "velocity_error_static", "velocity_error_constant"):
        if key in found:
            check.figure(f"{what}: {key}", found[key])
