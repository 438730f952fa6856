"""ZeRO and FSDP2 in one process: training, saving and going on, with both optimizers; blocks that are recomputed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from gpu.check import Check, fixed_order, videodiff, watched
from gpu.footage import world_dataset
from gpu.watch import Watch
from safetensors.torch import load_file

from videodiff.training.state.checkpoint import AVERAGE, latest_checkpoint
from videodiff.worlds.bouncing import Bouncing

OPTIMIZERS = {"adamw": ["optimizer=adamw", "optimizer.lr=1e-3"], "muon": ["optimizer=muon", "optimizer.lr=1e-3"]}


def run(check: Check) -> None:
    """Train four steps plainly and under each stage; take the last two again from the checkpoint between."""
    os.chdir(check.scratch)
    shutil.rmtree("runs/zero", ignore_errors=True)
    # A process that torchrun has not started is rank 0 of 1.
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    if check.tiny:
        # DeepSpeed has its Muon compiled, which takes minutes on a CPU and seconds on a GPU.
        torch._dynamo.config.disable = True
    data = world_dataset(check.scratch / "bouncing_16", Bouncing(balls={1: 1, 2: 0, 3: 0}, split="all"), 24, 16)
    curves = {}
    for name, optimizer in OPTIMIZERS.items():
        plain = check.part(f"{name}, one process", lambda n=name, o=optimizer: trained(check, data, f"{n}_plain", o))
        curves[name] = plain
        # A CPU has seen each stage in the tests; here it is to see that this code works.
        tiny = {"adamw": ("zero3", "fsdp2"), "muon": ("zero2",)}[name]
        for strategy in tiny if check.tiny else ("zero1", "zero2", "zero3", "fsdp2"):
            what = f"{name}, {strategy}"
            check.part(
                what, lambda w=what, s=strategy, n=name, o=optimizer, p=plain: sharded(check, data, w, s, n, o, p)
            )
    if curves["adamw"] is not None:
        check.part("recompute", lambda: recomputed(check, data, curves["adamw"]))
    backend = "NCCL" if check.cuda else "gloo"
    check.note(f"one process, {backend}; several GPUs are tried by nothing here")


def recipe(check: Check, data: Path, name: str, optimizer: list[str]) -> list[str]:
    """Return the overrides of a network of some blocks; it samples clips too."""
    return [
        "experiment=bouncing_cpu",
        f"run=runs/zero/{name}",
        f"data.root={data}",
        "data.validation_root=null",
        *("data.height=16", "data.width=16", "data.global_batch=4", "data.micro_batch=2"),
        *(("model.width=32", "model.depth=2", "text.width=32") if check.tiny else ("model.width=256", "model.depth=6")),
        "text.max_words=25",
        *("schedule=constant", "~schedule.decay", "schedule.warmup=2", "trainer.max_steps=4"),
        *("callbacks.checkpoints.every=2", "callbacks.checkpoints.keep=0", "trainer.precision=bf16-mixed"),
        *("callbacks.samples.every=2", "callbacks.samples.clips=2", "sampler.steps=1"),
        f"trainer.accelerator={check.device.type}",
        *fixed_order(),
        *optimizer,
    ]


def trained(check: Check, data: Path, name: str, more: list[str]) -> list[float]:
    """Train and return the losses."""
    watch = Watch()
    with watched(watch):
        videodiff("train", *recipe(check, data, name, more))
    return watch.curve()


def recomputed(check: Check, data: Path, plain: list[float]) -> None:
    """Train with the blocks computed again in the backward pass: the same curve as without."""
    for level in ("full",) if check.tiny else ("selective", "full"):
        curve = trained(check, data, level, [*OPTIMIZERS["adamw"], f"recompute={level}"])
        apart = max(abs(a - b) / abs(b) for a, b in zip(curve, plain, strict=True))
        check.figure(f"recompute={level}: greatest relative distance of the curve from one without", apart)
        check.hold(f"recompute={level}: the curve is within 1e-3 of one without", apart < 1e-3, f"{apart:.2g}")


def sharded(
    check: Check, data: Path, what: str, strategy: str, name: str, optimizer: list[str], plain: list[float] | None
) -> None:
    """Train under one strategy, and again from the middle."""
    whole, half = Path(f"runs/zero/{name}_{strategy}"), Path(f"runs/zero/{name}_{strategy}_half")
    optimizer = [*optimizer, f"strategy={strategy}"]
    curve = trained(check, data, whole.name, optimizer)
    if plain is not None:
        apart = max(abs(a - b) for a, b in zip(curve, plain, strict=True))
        check.figure(f"{what}: greatest distance of the curve from one process's", apart)
        # The weights are bfloat16 here and float32 there.
        check.hold(f"{what}: the curve is within 3e-2 of one process's", apart < 3e-2, f"{apart:.4f}")
    shutil.copytree(whole, half)
    shutil.rmtree(latest_checkpoint(half))
    if strategy not in ("zero3", "fsdp2"):
        # The clips of the step between are made again from the averages of the checkpoint.
        shutil.rmtree(half / "samples")
    rest = [o for o in recipe(check, data, half.name, optimizer) if not o.startswith(("run=", "~"))]
    videodiff("train", f"resume={half}", *rest)
    wanted, found = (load_file(latest_checkpoint(folder) / AVERAGE) for folder in (whole, half))
    apart = [key for key in wanted if not torch.equal(wanted[key], found[key])]
    check.hold(f"{what}: a resumed run ends with the same weights to the bit", not apart, f"{len(apart)} others")
