"""Compare the planner with measurements: memory and time of a training step on this machine's CPU.

    python bench/planning/planner.py [--only 0,3] [--steps 5]

First the speed of each operation is measured, on networks of other sizes than the predicted ones. Then `videodiff
train` trains each configuration for some steps, in one process or two. Memory is the growth of the fullest process's
resident memory since before the network was built, minus the memory of libraries, which a tiny case measures. Time is
the processor time of the fastest step, which other jobs on the machine change little. The table and
bench/out/planner.json give prediction, measurement and error.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from gpu.check import videodiff, watched  # noqa: E402
from gpu.footage import world_dataset  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402
from sequence import together  # noqa: E402

from videodiff.denoiser.transformer import SpaceTimeTransformer  # noqa: E402
from videodiff.parallel.launcher import meeting_port  # noqa: E402
from videodiff.planning.forecast.calibration import Speed, fit, once  # noqa: E402
from videodiff.planning.forecast.choice import Choice, evaluate  # noqa: E402
from videodiff.planning.forecast.hardware import Cluster  # noqa: E402
from videodiff.training.optimizer import AdamW  # noqa: E402
from videodiff.verbs import train as verb  # noqa: E402
from videodiff.verbs.config.groups import conf_dir  # noqa: E402
from videodiff.verbs.plan.job import job_of  # noqa: E402
from videodiff.worlds.bouncing import Bouncing  # noqa: E402

OUT = Path(__file__).resolve().parents[1] / "out" / "planner.json"
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
SIDE, FRAMES = 64, 16


class Case(NamedTuple):
    """A configuration: width, blocks, frames, clips that a process takes at once, and how it runs."""

    width: int
    depth: int
    frames: int
    clips: int
    recompute: str = "none"
    strategy: str = "single"
    processes: int = 1
    sequence: int = 1
    optimizer: str = "adamw"
    precision: str = "32-true"

    @property
    def batch(self) -> int:
        """The clips of a step."""
        return self.clips * self.processes // self.sequence

    def overrides(self, data: Path, run: str) -> list[str]:
        """Return the overrides for `videodiff train`."""
        return [
            *("experiment=bouncing_cpu", f"run={run}", f"data.root={data}", "data.validation_root=null"),
            *(f"data.frames={self.frames}", f"data.height={SIDE}", f"data.width={SIDE}"),
            *(f"data.global_batch={self.batch}", "data.cache_gib=0", "text.width=64", "text.max_words=25"),
            *(f"model.width={self.width}", f"model.depth={self.depth}", f"model.heads={max(self.width // 64, 1)}"),
            *("model.axes=[space,time]", f"optimizer={self.optimizer}", f"recompute={self.recompute}"),
            *(f"trainer.precision={self.precision}", f"trainer.devices={self.processes}", f"strategy={self.strategy}"),
            *([f"strategy.sequence_parallel={self.sequence}"] if self.processes > 1 else []),
            *("~callbacks.checkpoints", "~callbacks.samples", "logger=[]"),
        ]


CASES = (
    Case(64, 6, 16, 2),
    Case(128, 6, 8, 2),
    Case(128, 6, 8, 4, "selective"),
    Case(128, 8, 16, 3, "full"),
    Case(256, 4, 8, 2),
    Case(256, 8, 8, 2, "selective"),
    Case(256, 8, 8, 4, "full"),
    Case(384, 6, 4, 2),
    Case(192, 6, 8, 2, optimizer="muon"),
    Case(256, 6, 8, 2, precision="bf16-mixed"),
    Case(256, 6, 8, 1, strategy="ddp", processes=2),
    Case(384, 8, 4, 1, strategy="zero1", processes=2),
    Case(384, 8, 4, 1, strategy="zero2", processes=2),
    Case(384, 8, 4, 1, strategy="zero3", processes=2),
    Case(384, 8, 4, 1, strategy="fsdp2", processes=2),
    Case(128, 6, 8, 4, strategy="ddp", processes=2, sequence=2),
)
TINY = Case(64, 2, 1, 1)
# The networks on which the speeds of operations are measured: width, blocks, frames, clips.
MEASURED_ON = ((48, 2, 8, 1), (96, 2, 8, 2), (160, 2, 8, 2), (320, 2, 4, 2), (512, 2, 2, 2))


class Meter(Callback):
    """Measure the memory of a few steps, then the processor time of the others."""

    def __init__(self, out: Path) -> None:
        self.out, self.before, self.peak, self.seconds = out, 0, 0, []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if trainer.global_step == 1:
            Path("/proc/self/clear_refs").write_text("5")
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.seconds.append(time.process_time() - self.start)
        if trainer.global_step == 3:
            self.peak = status("VmHWM")
            thresholds(1 << 30, -1)
        if trainer.global_step == trainer.max_steps:
            found = {"bytes": self.peak - self.before, "seconds": min(self.seconds[4:])}
            self.out.write_text(json.dumps(found))


def thresholds(mapped: int, trimmed: int) -> None:
    """Set glibc's thresholds: the least size of a mapping of its own, and the free memory that it keeps at most."""
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, mapped)
    libc.mallopt(TRIM_THRESHOLD, trimmed)


def status(name: str) -> int:
    """Return a memory figure of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def train(case: Case, data: Path, out: Path, steps: int, environment: dict[str, str]) -> None:
    """Train as one process, and write the measurements to a file."""
    os.environ.update(environment)
    log = out.with_suffix(".log").open("w")
    os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    meter, build = Meter(out), verb.build_model

    def building(*arguments: Any) -> Any:
        # Freed memory is returned at once, so that resident memory is the memory in use.
        thresholds(1 << 16, 1 << 16)
        # Memory that was freed before, and would be used again, must count as new.
        ctypes.CDLL(None).malloc_trim(0)
        meter.before = status("VmRSS")
        return build(*arguments)

    verb.build_model = building
    with watched(meter):
        videodiff("train", *case.overrides(data, f"{out}.run"), f"trainer.max_steps={steps + 4}")


def measured(case: Case, data: Path, folder: Path, steps: int) -> tuple[float, float]:
    """Return the bytes of the fullest process of a case, and the seconds of the slowest one."""
    port, started = meeting_port(), []
    outs = [folder / f"{len(list(folder.iterdir()))}_{rank}.json" for rank in range(case.processes)]
    for rank, out in enumerate(outs):
        world = {"WORLD_SIZE": case.processes, "LOCAL_WORLD_SIZE": case.processes, "RANK": rank, "LOCAL_RANK": rank}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "planner"}
        environment = {name: str(value) for name, value in world.items()} if case.processes > 1 else {}
        started.append(apart(train, case, data, out, steps, environment))
    for process, out in zip(started, outs, strict=True):
        process.join(600)
        if process.exitcode or not out.exists():
            raise RuntimeError(
                f"{case}: found exit status {process.exitcode}; {out.with_suffix('.log').read_text()[-2000:]}"
            )
    found = [json.loads(out.read_text()) for out in outs]
    return max(one["bytes"] for one in found), max(one["seconds"] for one in found)


def apart(function: Callable[..., None], *arguments: Any) -> Any:
    """Call a function in a fresh process that has all imports already, without memory of earlier cases."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def calibrate(out: Path) -> None:
    """Measure this machine, and write its `Cluster` record to a file."""
    out.write_text(json.dumps(vars(calibrated())))


def calibrated() -> Cluster:
    """Return the measured `Cluster` record of this machine."""
    torch.set_num_threads(1)
    thresholds(1 << 30, -1)
    found, optimizer = [], {}
    for half in (False, True):
        for width, depth, frames, clips in MEASURED_ON if not half else MEASURED_ON[2:4]:
            network = SpaceTimeTransformer(width=width, depth=depth, heads=max(width // 64, 1), gate=1.0)
            found.append(once(network, lambda n=network, f=frames, c=clips, h=half: loss_of(n, f, c, h)))
            if not half:
                optimizer |= stepped(network)
    speed = fit(found)
    summed = max(together(2, sending, 1 << 24))
    return cluster_of(speed, optimizer, summed)


def loss_of(network: SpaceTimeTransformer, frames: int, clips: int, half: bool) -> torch.Tensor:
    """Return a loss of random clips."""
    given = {
        "z": torch.randn(clips, 3, frames, SIDE, SIDE),
        "tau": torch.rand(clips, frames),
        "text": torch.randn(clips, 25, 64),
        "text_mask": torch.ones(clips, 25, dtype=torch.bool),
        "fps": torch.full((clips,), 8.0),
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return network(**given).square().mean()


def stepped(network: SpaceTimeTransformer) -> dict[int, float]:
    """Return the bytes a second of the optimizer's step on these weights, by their bytes."""
    loss_of(network, 1, 1, False).backward()
    optimizer, seconds = AdamW(network.parameters(), lr=1e-6), []
    for _ in range(4):
        start = time.thread_time()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.thread_time() - start)
    size = 36 * sum(p.numel() for p in network.parameters())
    return {size: size / min(seconds[1:])}


def sending(group: Any, numbers: int) -> float:
    """Return this process's processor seconds for each byte that it sends in an all-reduce of two processes."""
    values, seconds = torch.ones(numbers), []
    for _ in range(4):
        start = time.process_time()
        dist.all_reduce(values)
        seconds.append(time.process_time() - start)
    return min(seconds) / (4 * numbers)


def cluster_of(speed: Speed, optimizer: dict[int, float], sent: float) -> Cluster:
    """Return the record of a machine from its measurements."""
    peak = {half: max(table.values()) for half, table in speed.products.items()}
    widths = sorted(set(speed.products[False]) | set(speed.products[True]))
    return Cluster(
        card="CPU",
        nodes=1,
        cards=2,
        memory_gib=8.0,
        tflops={"half": peak[True] / 1e12, "full": peak[False] / 1e12},
        products={w: speed.products[False].get(w, 0) / peak[False] for w in widths if w in speed.products[False]},
        memory_gb_per_s=10.0,
        node_gb_per_s=1 / sent / 1e9,
        network_gb_per_s=0.1,
        cpu=True,
        fusion=1.0,
        latency_us=0.0,
        launch_us=1e6 * speed.launch,
        slack=0.0,
        cores=2,
        decode_mpixel_per_s=1e9,
        storage_gb_per_s=1e9,
        kinds={**speed.kinds, "optimizer": optimizer},
    )


def predicted(case: Case, data: Path, cluster: Cluster) -> tuple[float, float]:
    """Return the planner's prediction: bytes of a process and seconds of a step."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("plan", [*case.overrides(data, "run"), "clip_mb=0.001", "cluster=cpux2"])
    here = Cluster(**{**vars(cluster), "cards": case.processes})
    plan = evaluate(job_of(cfg, cpu=True), here, Choice(case.strategy, case.recompute, case.sequence, 1))
    return plan.memory.total, plan.seconds.total


def line(words: Sequence[str]) -> str:
    """Return a line of the table."""
    return "  ".join(f"{word:>{width}}" for word, width in zip(words, (52, 9, 9, 7, 9, 9, 7), strict=True))


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(map(str, range(len(CASES)))))
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder, rows = Path(place), []
        apart(calibrate, folder / "machine.json").join()
        cluster = read_cluster(folder / "machine.json")
        print(json.dumps({"launch_us": cluster.launch_us, "tflops": cluster.tflops}), flush=True)
        world = Bouncing(frames=FRAMES, balls={1: 1, 2: 0, 3: 0}, split="all")
        data = world_dataset(folder / "data", world, 24, SIDE)
        libraries = measured(TINY, data, folder, args.steps)[0] - predicted(TINY, data, cluster)[0]
        print(f"libraries take {libraries / 2**20:.0f} MiB", flush=True)
        print(line(["configuration", "MiB", "found", "error", "s", "found", "error"]), flush=True)
        for case in (CASES[int(number)] for number in args.only.split(",")):
            found = measured(case, data, folder, args.steps)
            rows.append(row(case, predicted(case, data, cluster), (found[0] - libraries, found[1])))
            write(rows)


def read_cluster(path: Path) -> Cluster:
    """Read the record of a machine; JSON keeps numbers that are keys as text."""
    found = json.loads(path.read_text())
    found["products"] = {int(at): share for at, share in found["products"].items()}
    found["kinds"] = {name: {int(at): v for at, v in table.items()} for name, table in found["kinds"].items()}
    return Cluster(**found)


def row(case: Case, wanted: tuple[float, float], found: tuple[float, float]) -> dict[str, Any]:
    """Print a line of the table, and return it."""
    errors = [w / f - 1 for w, f in zip(wanted, found, strict=True)]
    name = f"{case.width}x{case.depth} {case.frames}f {case.clips}c {case.recompute} {case.strategy} "
    name += f"sp{case.sequence} {case.optimizer} {case.precision}"
    mib = [f"{one[0] / 2**20:.0f}" for one in (wanted, found)]
    seconds = [f"{one[1]:.2f}" for one in (wanted, found)]
    print(line([name, *mib, f"{errors[0]:+.1%}", *seconds, f"{errors[1]:+.1%}"]), flush=True)
    return {"case": name, "predicted": wanted, "measured": found, "errors": errors}


def write(rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows so far, and their largest errors."""
    names = ("memory_error_max", "time_error_max")
    worst = {name: max(abs(one["errors"][place]) for one in rows) for place, name in enumerate(names)}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({**worst, "configurations": len(rows), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
