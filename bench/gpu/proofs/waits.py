"""How often a training step waits for the device, and where; how many graphs eight buckets need."""

from __future__ import annotations

import os
import shutil
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gpu.check import Check, videodiff, watched
from gpu.footage import world_dataset
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.parallel.compile import compile_blocks
from videodiff.worlds.bouncing import Bouncing

ROOT = Path(__file__).resolve().parents[3]
# Frames, rows and columns in patches of two; the first is of sizes that differ, so that none is taken for another.
BUCKETS = [(6, 20, 12), (5, 16, 24), (3, 24, 16), (8, 12, 20), (4, 32, 8), (7, 8, 32), (2, 28, 20), (9, 16, 16)]


def run(check: Check) -> None:
    """Count waits with each optimizer, then graphs."""
    os.chdir(check.scratch)
    shutil.rmtree("runs/waits", ignore_errors=True)
    data = world_dataset(check.scratch / "bouncing_16", Bouncing(balls={1: 1, 2: 0, 3: 0}, split="all"), 24, 16)
    for optimizer in ("adamw", "muon"):
        check.part(f"waits, {optimizer}", lambda o=optimizer: count_waits(check, o, data))
    check.part("graphs", lambda: count_graphs(check))


def count_waits(check: Check, optimizer: str, data: Path) -> None:
    """Train some steps and record where the host waited in the last of them."""
    # The last step is logged, whatever was asked for: it is not watched.
    steps = 7
    waits = Waits(check.cuda, 3, steps - 1)
    with watched(waits):
        videodiff(
            "train",
            *("experiment=bouncing_cpu", f"optimizer={optimizer}", f"run=runs/waits/{optimizer}", f"data.root={data}"),
            *("data.validation_root=null", "data.height=16", "data.width=16", "data.global_batch=4"),
            *("model.width=32", "model.depth=2", "text.width=32", "text.max_words=25", f"trainer.max_steps={steps}"),
            # What a GPU has: one kernel for AdamW, whose steps are counted on the device.
            *("optimizer.fused=true", "trainer.precision=bf16-mixed", f"trainer.accelerator={check.device.type}"),
            *("~callbacks.checkpoints", "~callbacks.samples", "trainer.log_every_n_steps=1000"),
            *("callbacks.progress.every=1000",),
        )
    check.hold("steps were watched", waits.steps == waits.end - waits.begin, str(waits.steps))
    total = sum(waits.where.values())
    check.figure(f"{optimizer}: waits a step", total / max(waits.steps, 1))
    for place, count in waits.where.most_common(8):
        check.figure(f"{optimizer}: waits a step at {place}", count / max(waits.steps, 1))
    ours = {place: count for place, count in waits.where.items() if place.startswith("videodiff/")}
    # The guard asks before the optimizer whether the gradient is finite: a step that is skipped changes nothing.
    most = waits.steps
    check.hold(f"{optimizer}: one wait of this project's a step at most", sum(ours.values()) <= most, str(ours))


class Waits(Callback):
    """Count by the line of code what waits for the device: told by CUDA itself, or each number read from a tensor."""

    def __init__(self, cuda: bool, begin: int, end: int) -> None:
        self.cuda, self.begin, self.end, self.steps, self.where = cuda, begin, end, 0, Counter()
        self.reads = Reads(self.note)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if not self.begin <= index < self.end:
            return
        self.steps += 1
        if not self.cuda:
            self.reads.__enter__()
            return
        self.before = warnings.showwarning
        warnings.simplefilter("always")
        warnings.showwarning = self.warned
        torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if not self.begin <= index < self.end:
            return
        if not self.cuda:
            self.reads.__exit__(None, None, None)
            return
        torch.cuda.set_sync_debug_mode("default")
        warnings.showwarning = self.before

    def warned(self, message: Any, *rest: Any, **more: Any) -> None:
        if "synchroniz" in str(message):
            self.note()

    def note(self) -> None:
        """Remember the innermost line of this project at work, else the innermost of a library."""
        frames = [
            frame for frame in traceback.extract_stack()[:-2] if "torch/utils/_python_dispatch" not in frame.filename
        ]
        frames = [frame for frame in frames if not frame.filename.startswith(str(ROOT / "bench"))]
        ours = [f for f in frames if f.filename.startswith(f"{ROOT}/videodiff/") and "/verbs/" not in f.filename]
        ours = [f for f in ours if not f.filename.endswith(("/cli.py", "/__main__.py"))]
        frame = (ours or frames)[-1]
        place = os.path.relpath(frame.filename, ROOT) if ours else "/".join(Path(frame.filename).parts[-3:])
        # What the host draws for a clip it reads from its own memory, on every device.
        if not place.startswith(("videodiff/diffusion/levels.py", "videodiff/diffusion/objective.py")) or self.cuda:
            self.where[f"{place}:{frame.lineno}"] += 1


class Reads(TorchDispatchMode):
    """Tell of each number that is read from a tensor."""

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self.tell = tell

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            self.tell()
        return function(*args, **(kwargs or {}))


def count_graphs(check: Check) -> None:
    """Run forward and backward in eight buckets, twice, and count what was built."""
    from torch._dynamo.utils import counters

    counters.clear()
    axes = ("space",) if check.tiny else ("space", "time")
    width = 16 if check.tiny else 1152
    with torch.device(check.device):
        made = SpaceTimeTransformer(4, (1, 2, 2), width, 2, 2 if check.tiny else 16, axes, text_width=8)
    compile_blocks(made, backend="eager" if check.tiny else "inductor", dynamic=True)
    after = []
    for bucket in [*BUCKETS, *BUCKETS]:
        z = torch.randn(3, 4, *bucket, device=check.device)
        tau, text = torch.rand(3, bucket[0], device=check.device), torch.randn(3, 11, 8, device=check.device)
        mask, fps = torch.ones(3, 11, dtype=torch.bool, device=check.device), torch.full((3,), 8.0, device=check.device)
        with torch.autocast(check.device.type, torch.bfloat16):
            made(z, tau, text, mask, fps).square().mean().backward()
        after.append(counters["stats"]["unique_graphs"])
    check.figure("graphs after one bucket and after eight", f"{after[0]} {after[-1]}")
    check.hold("eight buckets need two graphs for a kind of block at most", after[-1] <= 2 * len(axes), str(after[-1]))
    check.hold("a bucket that was seen needs no new graph", after[-1] == after[len(BUCKETS) - 1])
