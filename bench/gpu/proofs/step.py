"""The whole training step of hdvila_256 from cached latents and text, blocks compiled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gpu.check import Check, videodiff, watched
from gpu.proofs.recipes import SMALL, hdvila_parts, micro_batch
from gpu.watch import Watch


def run(check: Check) -> None:
    """Cache, train, and tell how long steps take and how long they wait."""
    os.chdir(check.scratch)
    shutil.rmtree("runs/step", ignore_errors=True)
    codec, text, data = hdvila_parts(check)
    size = 32 if check.tiny else 256
    groups = [f"codec.path_or_name={codec}", f"text.path_or_name={text}"]
    groups += ["text.subfolder=null", "text.tokenizer_subfolder=null"]
    out = check.scratch / f"step_latents_{size}"
    shutil.rmtree(out, ignore_errors=True)
    cache = ["codec=sd_vae", "text=t5", *groups, f"out={out}", f"sizes=[[{size},{size}]]", "stride=3", "workers=1"]
    videodiff("cache", str(data), *cache, *(["decoders=0"] if check.tiny else []))
    eager = steps(check, "eager", out, groups)
    if check.tiny:
        check.note("compiled blocks are tried in the proof `speed`")
    elif eager:
        compiled = check.part("compiled", lambda: steps(check, "compiled", out, [*groups, "compile=blocks"]))
        if compiled:
            check.figure("compiled beside eager, steps a second", eager / compiled)


def steps(check: Check, name: str, data: Path, groups: list[str]) -> float:
    """Train some steps and return the seconds of one."""
    count, skip, micro = (4, 2, 2) if check.tiny else (24, 8, micro_batch(check))
    watch = Watch(timed=True)
    with watched(watch):
        videodiff(
            "train",
            *("experiment=hdvila_256", "strategy=auto", f"run=runs/step/{name}", f"data.root={data}"),
            *("data.deliver=[latent,text]", "data.validation_root=null"),
            *("~callbacks.checkpoints", "~callbacks.samples"),
            *(f"trainer.max_steps={count}", f"trainer.accelerator={check.device.type}"),
            *groups,
            *((*SMALL, "data.height=32", "data.width=32", "data.frames=4") if check.tiny else ("data.num_workers=8",)),
            *(f"data.global_batch={micro}", f"data.micro_batch={micro}"),
        )
    work, between = watch.waited(skip)
    taken = (work + between) / (count - skip)
    check.figure(f"{name}: seconds a step of {micro} clips", taken)
    check.figure(f"{name}: tokens a second", watch.places / 4 / count / taken)
    check.figure(f"{name}: share of the time waiting for data", between / (work + between))
    check.figure(f"{name}: peak memory, GiB", watch.peak)
    curve = watch.curve()
    check.hold(f"{name}: every loss is finite", all(abs(loss) < 1e6 for loss in curve), str(curve[-3:]))
    return taken
