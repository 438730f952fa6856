"""The planner beside what it predicts: memory and time of a training step on this machine's processor.

    python bench/planning/planner.py [--only 0,3] [--steps 3]

This machine is measured as `videodiff plan calibrate=...` does it, on networks of other sizes than those that are
predicted, before and after all others. In between each configuration trains for some steps by `videodiff train`, in one
process or two.

Memory is the most bytes that torch's allocator has given out at once, by its own records, from before the network is
built to the end of the second step; of several processes that of the fullest one. Time is the processor time of a step.
Beside each step runs a fixed work, whose time says how fast the machine was at that moment, as other jobs slow both.
A tiny training tells what the trainer takes beside its operations; a tiny and a wide one tell what an engine takes for
each block and for each byte that it sends. The figures go to bench/out/planner.json, the table to docs/fits.md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.profiler import ProfilerActivity, profile
from trainings import ROOT, Case, Observer, apart, begin, clips, end, planned

from videodiff.planning.forecast.calibration import QUANTILE, Pace
from videodiff.planning.forecast.choice import Plan
from videodiff.planning.forecast.hardware import Cluster
from videodiff.planning.forecast.memory import SPLIT
from videodiff.verbs.config.groups import conf_dir
from videodiff.verbs.plan.measure import of_processor

OUT, PAGE = ROOT / "bench" / "out" / "planner.json", ROOT / "docs" / "fits.md"
MARKS = "<!-- made by bench/planning/planner.py -->", "<!-- end -->"
PROFILED = 2

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
TINY, WIDE = Case(64, 2, 2, 32, 1), Case(320, 2, 2, 32, 1)


class Meter(Observer):
    """Record what the allocator gives out, then the time of steps in turns with a fixed work.

    `spent`: the paces of the step that is not over; it may have several micro-batches.
    """

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self.pace, self.steps, self.bytes, self.spent = Pace(), [], 0, 0.0
        self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def before_building(self) -> None:
        self.profile.start()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.before, self.start = self.pace(), time.process_time()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        spent = time.process_time() - self.start
        self.spent += spent / ((self.before + self.pace()) / 2)
        if trainer.global_step == len(self.steps):
            return
        self.steps.append(self.spent)
        self.spent = 0.0
        if trainer.global_step == PROFILED:
            self.profile.stop()
            events = [e for e in self.profile.profiler.kineto_results.events() if e.name() == "[memory]"]
            sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
            self.bytes = int(np.cumsum(sizes).max())
        if trainer.global_step == trainer.max_steps:
            self.out.write_text(json.dumps({"bytes": self.bytes, "steps": self.steps}))


def trained(case: Case, data: Path, folder: Path, steps: int) -> tuple[float, float]:
    """Return bytes of the fullest process, and the paces of a step of the slowest one."""
    found = end(case, begin(case, data, folder, PROFILED + 1 + steps, Meter))
    # The step after the profiler's end still pays for it.
    paces = [float(np.quantile(one["steps"][PROFILED + 1 :], QUANTILE)) for one in found]
    return max(one["bytes"] for one in found), max(paces)


def calibrate(out: Path) -> None:
    """Write down this machine as the planner sees it, and the seconds of its pace."""
    like = instantiate(OmegaConf.load(conf_dir() / "cluster" / "cpux2.yaml"))
    found, pace = of_processor(like, rounds=4)
    out.write_text(json.dumps(asdict(found) | {"pace": pace}))


class Machine(NamedTuple):
    """This machine as the planner sees it, and the seconds of its pace."""

    cluster: Cluster
    pace: float


def calibrated(out: Path) -> Machine:
    """Measure this machine in a process of its own; numbers are text where they name a place in JSON."""
    apart(calibrate, out).join()
    found = json.loads(out.read_text())
    pace, found["products"] = found.pop("pace"), {int(at): share for at, share in found["products"].items()}
    found["kinds"] = {name: {int(at): v for at, v in table.items()} for name, table in found["kinds"].items()}
    # Clips are there at once: they are small, and one process reads them as it trains.
    return Machine(Cluster(**found | {"decode_mpixel_per_s": 1e9, "storage_gb_per_s": 1e9}), pace)


def mean(machines: Sequence[Machine]) -> Machine:
    """Return the mean of what was measured at several times, at equal paces.

    A time may be found to be nothing, so a table need not have each place.
    """
    pace = statistics.mean(one.pace for one in machines)
    shares = [one.pace / pace for one in machines]
    first = machines[0].cluster

    def rate(of: Callable[[Cluster], float]) -> float:
        return statistics.mean(of(one.cluster) * share for one, share in zip(machines, shares, strict=True))

    kinds = {}
    for name in set.intersection(*(set(one.cluster.kinds) for one in machines)):
        places = set.intersection(*(set(one.cluster.kinds[name]) for one in machines))
        kinds[name] = {at: rate(lambda c, name=name, at=at: c.kinds[name][at]) for at in sorted(places)}
    kinds = {name: table for name, table in kinds.items() if table}
    launch = 1 / rate(lambda c: 1 / max(c.launch_us, 1e-9))
    dispatch = 1 / rate(lambda c: 1 / max(c.dispatch_us, 1e-9))
    link = rate(lambda c: c.node_gb_per_s)
    here = replace(first, kinds=kinds, launch_us=launch, dispatch_us=dispatch, node_gb_per_s=link)
    return Machine(here, pace)


def with_engines(machine: Machine, data: Path, paces: Mapping[Case, float]) -> Machine:
    """Return the machine with what trainer and engines take beside their operations, from paces of some trainings."""

    def beside(case: Case) -> tuple[float, float]:
        """Return the seconds of a step that are neither planned nor sent, and the bytes that are sent."""
        plan = planned(case, data, cluster)
        return machine.pace * paces[case] - (plan.seconds.total - plan.seconds.sent), plan.sent.bytes

    cluster = machine.cluster
    cluster = replace(cluster, trainer_ms=1e3 * max(0.0, beside(TINY)[0]))
    for tiny in [case for case in paces if case.width == TINY.width and case.processes > 1]:
        (less, few), (more, many) = beside(tiny), beside(tiny._replace(width=WIDE.width))
        byte = max((more - less) / (many - few), 1e-12)
        block = 1e3 * max(0.0, less - byte * few) / tiny.depth
        cluster = replace(
            cluster,
            engine_ms=cluster.engine_ms | {tiny.strategy: float(block)},
            engine_gb_per_s=cluster.engine_gb_per_s | {tiny.strategy: float(1e-9 / byte)},
        )
    print(f"a step of the trainer {cluster.trainer_ms:.1f} ms, a block of an engine {cluster.engine_ms}", flush=True)
    print(f"GB/s {cluster.engine_gb_per_s}, of a sum {cluster.node_gb_per_s:.2f}", flush=True)
    return machine._replace(cluster=cluster)


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(map(str, range(len(CASES)))))
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, cases = time.monotonic(), [CASES[int(number)] for number in args.only.split(",")]
    engines = {case.strategy for case in cases if case.processes > 1 and case.strategy != "ddp"}
    tiny = [TINY, *(one._replace(strategy=s, processes=2) for s in SPLIT if s in engines for one in (TINY, WIDE))]
    with tempfile.TemporaryDirectory() as place:
        folder, found = Path(place), {}
        data, machines = clips(folder / "data"), [calibrated(folder / "before.json")]
        for case in [*tiny, *cases]:
            found[case] = trained(case, data, folder, args.steps)
            told = f"{found[case][0] / 2**20:.1f} MiB, {1e3 * machines[0].pace * found[case][1]:.0f} ms"
            print(f"{time.monotonic() - began:4.0f} s  {case[:5]} {case.told()}: {told}", flush=True)
        machines.append(calibrated(folder / "after.json"))
        machine = with_engines(mean(machines), data, {case: found[case][1] for case in tiny})
        rows = [row(case, planned(case, data, machine.cluster), found[case], machine.pace) for case in cases]
    write(rows)
    if len(rows) == len(CASES):
        page(rows)
    print(f"took {time.monotonic() - began:.0f} s", flush=True)


def row(case: Case, plan: Plan, measured: tuple[float, float], pace: float) -> dict[str, Any]:
    """Print a line of the table, and return it."""
    size, seconds = measured[0], pace * measured[1]
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
    """Write the largest errors, and all rows."""
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
