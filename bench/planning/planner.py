"""The planner beside what it predicts: memory and time of a training step on this machine's processor.

    python bench/planning/planner.py [--only 0,3] [--steps 3]

First this machine is measured as `videodiff plan calibrate=...` does it, on networks of other sizes than those that are
predicted. Then each configuration trains for some steps by `videodiff train`, in one process or two.

Memory is the most bytes that torch's allocator has given out at once, by its own records, from before the network is
built to the end of the second step; of several processes that of the fullest one. Time is the processor time of a step.
Beside each step runs a fixed work, whose time says how fast the machine was at that moment, as other jobs slow both.
Tiny trainings tell what trainer and engines take beside their operations. The figures go to bench/out/planner.json, the
table to docs/fits.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT)]

import deepspeed  # noqa: E402, F401  here, not in each process
import numpy as np  # noqa: E402
import torch  # noqa: E402
from gpu.check import videodiff, watched  # noqa: E402
from gpu.footage import world_dataset  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from videodiff.parallel.launcher import meeting_port  # noqa: E402
from videodiff.planning.forecast.calibration import Pace  # noqa: E402
from videodiff.planning.forecast.choice import Choice, Plan, evaluate  # noqa: E402
from videodiff.planning.forecast.hardware import Cluster  # noqa: E402
from videodiff.verbs import train as verb  # noqa: E402
from videodiff.verbs.config.groups import conf_dir  # noqa: E402
from videodiff.verbs.plan.job import job_of  # noqa: E402
from videodiff.verbs.plan.measure import of_processor  # noqa: E402
from videodiff.worlds.bouncing import Bouncing  # noqa: E402

OUT, PAGE = ROOT / "bench" / "out" / "planner.json", ROOT / "docs" / "fits.md"
MARKS = "<!-- made by bench/planning/planner.py -->", "<!-- end -->"
SIDE, FRAMES, PROFILED = 64, 16, 2


class Case(NamedTuple):
    """A configuration: width, blocks, frames, rows of pixels, clips of a process at once, and how it runs."""

    width: int
    depth: int
    frames: int
    side: int
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
        """Return what `videodiff train` is given."""
        return [
            *("experiment=bouncing_cpu", f"run={run}", f"data.root={data}", "data.validation_root=null"),
            *(f"data.frames={self.frames}", f"data.height={self.side}", f"data.width={self.side}"),
            *(f"data.global_batch={self.batch}", "data.cache_gib=0", "text.width=64", "text.max_words=25"),
            *(f"model.width={self.width}", f"model.depth={self.depth}", f"model.heads={max(self.width // 64, 1)}"),
            *("model.axes=[space,time]", f"optimizer={self.optimizer}", f"recompute={self.recompute}"),
            *(f"trainer.precision={self.precision}", f"trainer.devices={self.processes}", f"strategy={self.strategy}"),
            *([f"strategy.sequence_parallel={self.sequence}"] if self.processes > 1 else []),
            *("~callbacks.checkpoints", "~callbacks.samples", "logger=[]"),
        ]

    def told(self) -> str:
        """Return what is special about it."""
        plain = Case(*self[:5])
        words = [str(a) for a, b in zip(self[5:], plain[5:], strict=True) if a != b and not isinstance(a, int)]
        words += [f"{self.processes} processes"] * (self.processes > 1) + ["a clip together"] * (self.sequence > 1)
        return ", ".join(words) or "plain"


CASES = (
    Case(64, 6, 16, 32, 4),
    Case(128, 4, 8, 64, 2),
    Case(128, 6, 16, 32, 2, "selective"),
    Case(128, 6, 16, 32, 3, "full"),
    Case(192, 6, 8, 32, 2),
    Case(256, 4, 8, 32, 2),
    Case(256, 6, 8, 32, 2, "selective"),
    Case(256, 6, 8, 32, 3, "full"),
    Case(384, 4, 4, 32, 2),
    Case(192, 6, 8, 32, 2, optimizer="muon"),
    Case(256, 4, 8, 32, 4, precision="bf16-mixed"),
    Case(256, 4, 8, 32, 2, strategy="ddp", processes=2),
    Case(256, 4, 8, 32, 2, strategy="zero1", processes=2),
    Case(256, 4, 8, 32, 2, strategy="zero2", processes=2),
    Case(256, 4, 8, 32, 2, strategy="zero3", processes=2),
    Case(256, 4, 8, 32, 2, strategy="fsdp2", processes=2),
    Case(128, 4, 8, 64, 2, strategy="ddp", processes=2, sequence=2),
)
TINY = Case(64, 2, 2, 32, 1)


class Meter(Callback):
    """Record what the allocator gives out, then the time of steps in turns with a fixed work."""

    def __init__(self, out: Path) -> None:
        self.out, self.pace, self.steps, self.bytes = out, Pace(), [], 0
        self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.before, self.start = self.pace(), time.process_time()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        spent = time.process_time() - self.start
        self.steps.append(spent / ((self.before + self.pace()) / 2))
        if trainer.global_step == PROFILED:
            self.profile.stop()
            events = [e for e in self.profile.profiler.kineto_results.events() if e.name() == "[memory]"]
            sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
            self.bytes = int(np.cumsum(sizes).max())
        if trainer.global_step == trainer.max_steps:
            found = {"bytes": self.bytes, "paces": statistics.median(self.steps[PROFILED + 1 :])}
            self.out.write_text(json.dumps(found))


def train(case: Case, data: Path, out: Path, steps: int, environment: dict[str, str]) -> None:
    """Train as one process, and write down what was measured."""
    os.environ.update(environment)
    log = out.with_suffix(".log").open("w")
    os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    meter, build = Meter(out), verb.build_model

    def building(*arguments: Any) -> Any:
        meter.profile.start()
        return build(*arguments)

    verb.build_model = building
    with watched(meter):
        videodiff("train", *case.overrides(data, f"{out}.run"), f"trainer.max_steps={PROFILED + 1 + steps}")


def begin(case: Case, data: Path, folder: Path, steps: int) -> list[tuple[Any, Path]]:
    """Start the processes of a case, and return each with its file."""
    port, started, name = meeting_port(), [], "_".join(map(str, case))
    for rank in range(case.processes):
        out = folder / f"{name}_{rank}.json"
        world = {"WORLD_SIZE": case.processes, "LOCAL_WORLD_SIZE": case.processes, "RANK": rank, "LOCAL_RANK": rank}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "planner"}
        environment = {name: str(value) for name, value in world.items()} if case.processes > 1 else {}
        started.append((apart(train, case, data, out, steps, environment), out))
    return started


def end(case: Case, started: Sequence[tuple[Any, Path]]) -> tuple[float, float]:
    """Return bytes of the fullest process, and the paces of a step of the slowest one, of a case that was started."""
    for process, out in started:
        process.join(600)
        if process.exitcode or not out.exists():
            raise RuntimeError(
                f"{case}: found exit status {process.exitcode}; {out.with_suffix('.log').read_text()[-2000:]}"
            )
    found = [json.loads(out.read_text()) for _, out in started]
    return max(one["bytes"] for one in found), max(one["paces"] for one in found)


def apart(function: Callable[..., None], *arguments: Any) -> Any:
    """Call a function in a process that has all imports already, and no memory of the cases before it."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def calibrate(out: Path) -> None:
    """Write down this machine as the planner sees it, and the seconds of its pace."""
    like = instantiate(OmegaConf.load(conf_dir() / "cluster" / "cpux2.yaml"))
    found, pace = of_processor(like)
    out.write_text(json.dumps(asdict(found) | {"pace": pace}))


def read_machine(path: Path) -> tuple[Cluster, float]:
    """Return what was written down of a machine; numbers are text where they name a place in JSON."""
    found = json.loads(path.read_text())
    pace, found["products"] = found.pop("pace"), {int(at): share for at, share in found["products"].items()}
    found["kinds"] = {name: {int(at): v for at, v in table.items()} for name, table in found["kinds"].items()}
    # Clips are there at once: they are small, and one process reads them as it trains.
    return Cluster(**found | {"decode_mpixel_per_s": 1e9, "storage_gb_per_s": 1e9}), pace


def predicted(case: Case, data: Path, cluster: Cluster) -> Plan:
    """Return what the planner says of a case."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("plan", [*case.overrides(data, "run"), "clip_mb=0.001", "cluster=cpux2"])
    here = replace(cluster, cards=case.processes)
    return evaluate(job_of(cfg, cpu=True), here, Choice(case.strategy, case.recompute, case.sequence, 1))


def with_engines(cluster: Cluster, pace: float, data: Path, folder: Path) -> Cluster:
    """Return the machine with what trainer and engines take beside their operations, from tiny trainings."""
    engines = {case.strategy: case for case in CASES if case.processes > 1 and case.strategy != "ddp"}
    tiny = [TINY, *(TINY._replace(strategy=name, processes=2) for name in engines)]
    for case in tiny:
        started = begin(case, data, folder, 6)
        wanted = predicted(case, data, cluster).seconds.total
        beside = max(0.0, 1e3 * (pace * end(case, started)[1] - wanted))
        if case.processes == 1:
            cluster = replace(cluster, trainer_ms=beside)
        else:
            cluster = replace(cluster, engine_ms=cluster.engine_ms | {case.strategy: beside / case.depth})
    print(f"a step of the trainer {cluster.trainer_ms:.1f} ms, a block of an engine {cluster.engine_ms}", flush=True)
    return cluster


def in_turns(cases: Sequence[Case]) -> list[list[Case]]:
    """Return the cases in groups of at most two processes."""
    groups: list[list[Case]] = []
    for case in cases:
        if not groups or sum(one.processes for one in groups[-1]) + case.processes > 2:
            groups.append([])
        groups[-1].append(case)
    return groups


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(map(str, range(len(CASES)))))
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder, rows = Path(place), []
        apart(calibrate, folder / "machine.json").join()
        cluster, pace = read_machine(folder / "machine.json")
        world = Bouncing(frames=FRAMES, balls={1: 1, 2: 0, 3: 0}, split="all")
        data = world_dataset(folder / "data", world, 24, SIDE)
        print(f"launch {cluster.launch_us:.1f} us, pace {1e3 * pace:.1f} ms", flush=True)
        cluster = with_engines(cluster, pace, data, folder)
        for cases in in_turns([CASES[int(number)] for number in args.only.split(",")]):
            started = [begin(case, data, folder, args.steps) for case in cases]
            plans = [predicted(case, data, cluster) for case in cases]
            for case, plan, processes in zip(cases, plans, started, strict=True):
                size, paces = end(case, processes)
                rows.append(row(case, plan, size, pace * paces))
                write(rows)
    if len(rows) == len(CASES):
        page(rows)


def row(case: Case, plan: Plan, size: float, seconds: float) -> dict[str, Any]:
    """Print a line of the table, and return it."""
    found = {
        "case": case._asdict(),
        "name": case.told(),
        "predicted": {"bytes": plan.memory.total, "seconds": plan.seconds.total},
        "measured": {"bytes": size, "seconds": seconds},
        "errors": {"bytes": plan.memory.total / size - 1, "seconds": plan.seconds.total / seconds - 1},
        "memory": plan.memory._asdict(),
        "step": plan.seconds._asdict(),
    }
    print(line(found), flush=True)
    print(f"    { ({k: round(1e3 * v, 1) for k, v in found['step'].items() if v}) }", flush=True)
    return found


def line(one: dict[str, Any]) -> str:
    """Return a line of the table."""
    case, wanted, found, errors = Case(**one["case"]), one["predicted"], one["measured"], one["errors"]
    size = f"{case.width} x {case.depth}, {case.clips} x {case.frames} x {case.side} x {case.side}"
    mib = f"{wanted['bytes'] / 2**20:.1f} | {found['bytes'] / 2**20:.1f} | {errors['bytes']:+.1%}"
    ms = f"{1e3 * wanted['seconds']:.0f} | {1e3 * found['seconds']:.0f} | {errors['seconds']:+.1%}"
    return f"| {size} | {one['name']} | {mib} | {ms} |"


def write(rows: Sequence[dict[str, Any]]) -> None:
    """Write the largest errors so far, and all rows."""
    worst = {
        name: max(abs(one["errors"][part]) for one in rows)
        for name, part in (("memory_error_max", "bytes"), ("time_error_max", "seconds"))
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({**worst, "configurations": len(rows), "rows": rows}, indent=2) + "\n")


def page(rows: Sequence[dict[str, Any]]) -> None:
    """Put the table into its page."""
    head = "| width x blocks, clips | | MiB predicted | measured | error | ms predicted | measured | error |"
    table = "\n".join([MARKS[0], head, "|---" * 8 + "|", *map(line, rows), MARKS[1]])
    PAGE.write_text(re.sub(f"{MARKS[0]}.*?{MARKS[1]}", lambda _: table, PAGE.read_text(), flags=re.S))


if __name__ == "__main__":
    main()
