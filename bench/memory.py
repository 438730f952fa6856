"""What a process keeps of weights, gradients and state under each strategy, beside the formulas of docs/cluster.md.

    python bench/memory.py [--processes 2] [--width 256] [--depth 8] [--strategies ddp,zero1,zero2,zero3,fsdp2]

Counted are the bytes of all living tensors of a process between the backward pass and the optimizer's third step, when
there are gradients and moments, each memory once. The buffers of communication, whose sizes conf/strategy sets, are
made small: the formulas leave them out.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from gpu.check import videodiff, watched  # noqa: E402
from gpu.footage import world_dataset  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402

from videodiff.parallel.launcher import meeting_port  # noqa: E402
from videodiff.worlds.bouncing import Bouncing  # noqa: E402

# Bytes of a process by the number of weights and of processes, as docs/cluster.md has them.
FORMULAS = {
    "ddp": lambda weights, n: 20 * weights,
    "zero1": lambda weights, n: 4 * weights + 20 * weights / n,
    "zero2": lambda weights, n: 4 * weights + 20 * weights / n,
    "zero3": lambda weights, n: 24 * weights / n,
    # On CPU processes the host's part and the device's lie in one memory. The device keeps its part of the gradients.
    "zero2_offload": lambda weights, n: 4 * weights + 24 * weights / n,
    # Gradients as they are summed, and as the step takes them.
    "zero3_offload": lambda weights, n: 28 * weights / n,
    "fsdp2": lambda weights, n: 20 * weights / n,
}
SMALL = {
    "zero": ("reduce_bucket_size=100000", "allgather_bucket_size=100000"),
    "zero3": ("reduce_bucket_size=100000", "prefetch_bucket_size=0", "param_persistence_threshold=0"),
}


class Living(Callback):
    """Write down the bytes of all living tensors before the optimizer's third step."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if trainer.global_step == 2:
            gc.collect()
            weights = module.engine.count(p for p in module.parameters() if p.requires_grad)
            self.out.write_text(json.dumps({"weights": weights, "bytes": sum(living().values())}))


def living() -> dict[int, int]:
    """Return the bytes of each memory that a tensor of this process holds, by its address."""
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
            local = getattr(thing, "_local_tensor", thing)
            for one in (local, local.grad):
                if one is not None:
                    storage = one.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return found


def train(folder: Path, out: Path, strategy: str, args: argparse.Namespace) -> None:
    """Train three steps as one process of several."""
    os.chdir(folder)
    buffers = SMALL.get(strategy.split("_")[0], SMALL["zero"] if strategy.startswith("zero") else ())
    with watched(Living(out)):
        videodiff(
            "train",
            *("experiment=bouncing_cpu", f"run=runs/{strategy}", f"data.root={folder / 'data'}"),
            *("data.validation_root=null", "data.height=16", "data.width=16", f"data.global_batch={args.processes}"),
            *(f"model.width={args.width}", f"model.depth={args.depth}", "model.heads=4", "text.width=64"),
            *("text.max_words=25", "optimizer=adamw", "trainer.max_steps=3", f"trainer.devices={args.processes}"),
            *("~callbacks.checkpoints", "~callbacks.samples", f"strategy={strategy}"),
            *(f"strategy.{buffer}" for buffer in buffers),
        )


def measured(folder: Path, strategy: str, args: argparse.Namespace) -> list[dict[str, int]]:
    """Start the processes of one strategy and return what each has found."""
    port, started, outs = meeting_port(), [], []
    for rank in range(args.processes):
        outs.append(folder / f"{strategy}_{rank}.json")
        world = {"WORLD_SIZE": args.processes, "LOCAL_WORLD_SIZE": args.processes, "RANK": rank, "LOCAL_RANK": rank}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": strategy}
        environment = os.environ | {name: str(value) for name, value in (world | meeting).items()}
        command = [sys.executable, __file__, *sys.argv[1:], "--inside", str(folder), "--one", strategy]
        with (folder / f"{strategy}_{rank}.log").open("w") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    for rank, process in enumerate(started):
        if process.wait(timeout=600):
            raise RuntimeError((folder / f"{strategy}_{rank}.log").read_text()[-2000:])
    return [json.loads(out.read_text()) for out in outs]


def main() -> None:
    """Print a table: strategy, bytes of the process that holds most, the formula, their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--strategies", default=",".join(FORMULAS))
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        rank = os.environ["RANK"]
        train(args.inside, args.inside / f"{args.one}_{rank}.json", args.one, args)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        world_dataset(folder / "data", Bouncing(balls={1: 1, 2: 0, 3: 0}, split="all"), 24, 16)
        print(f"{'strategy':10} {'weights':>12} {'MiB':>8} {'formula':>8} {'ratio':>6}")
        for strategy in args.strategies.split(","):
            found = measured(folder, strategy, args)
            most, weights = max(one["bytes"] for one in found), found[0]["weights"]
            wanted = FORMULAS[strategy](weights, args.processes)
            print(
                f"{strategy:10} {weights:12,} {most / 2**20:8.1f} {wanted / 2**20:8.1f} {most / wanted:6.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
