"""Short trainings by `videodiff train`, in one process or several, that are watched from inside, and their plans."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT)]

import deepspeed  # noqa: E402, F401  here, not in each process
import torch  # noqa: E402
from gpu.check import videodiff, watched  # noqa: E402
from gpu.footage import world_dataset  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402

from videodiff.parallel.launcher import meeting_port  # noqa: E402
from videodiff.planning.forecast.choice import Choice, Plan, evaluate  # noqa: E402
from videodiff.planning.forecast.hardware import Cluster  # noqa: E402
from videodiff.verbs.config.groups import conf_dir  # noqa: E402
from videodiff.verbs.plan.job import job_of  # noqa: E402
from videodiff.verbs.train import command as verb  # noqa: E402
from videodiff.worlds.bouncing import Bouncing  # noqa: E402

SIDE, FRAMES, CLIPS = 64, 16, 24


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
    accumulate: int = 1
    axes: str = "space,time"
    more: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        """The clips of a step."""
        return self.clips * self.accumulate * self.processes // self.sequence

    def overrides(self, data: Path, run: str) -> list[str]:
        """Return what `videodiff train` is given."""
        return [
            *("experiment=bouncing_cpu", f"run={run}", f"data.root={data}", "data.validation_root=null"),
            *(f"data.frames={self.frames}", f"data.height={self.side}", f"data.width={self.side}"),
            *(f"data.global_batch={self.batch}", f"data.micro_batch={self.clips}", "data.cache_gib=0"),
            *("text.width=64", "text.max_words=25", f"model.axes=[{self.axes}]", "model.captioned=[true]"),
            *(f"model.width={self.width}", f"model.depth={self.depth}", f"model.heads={max(self.width // 64, 1)}"),
            *(f"optimizer={self.optimizer}", f"recompute={self.recompute}", f"strategy={self.strategy}"),
            *(f"trainer.precision={self.precision}", f"trainer.devices={self.processes}", *self.more),
            *([f"strategy.sequence_parallel={self.sequence}"] if self.processes > 1 else []),
            *("~callbacks.checkpoints", "~callbacks.samples", "logger=[]"),
        ]

    def told(self) -> str:
        """Return what is special about it."""
        plain = Case(*self[:5])
        words = [str(a) for a, b in zip(self[5:11], plain[5:11], strict=True) if a != b and not isinstance(a, int)]
        words += [f"{self.processes} processes"] * (self.processes > 1)
        words += [f"{self.sequence} a clip"] * (self.sequence > 1)
        words += [f"{self.accumulate} micro-batches"] * (self.accumulate > 1)
        words += [self.axes.replace(",", ", ")] * (self.axes != plain.axes)
        return ", ".join([*words, *(setting.partition(".")[2] for setting in self.more)]) or "plain"


class Observer(Callback):
    """Watches one process of a training, and writes what it found to `out`; `steps` are taken in all."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def before_building(self) -> None:
        """Do what has to be done before the network is built."""


def clips(folder: Path) -> Path:
    """Write a data set for all cases."""
    return world_dataset(folder, Bouncing(frames=FRAMES, balls={1: 1, 2: 0, 3: 0}, split="all"), CLIPS, SIDE)


def train(case: Case, data: Path, observer: Observer, steps: int, environment: dict[str, str]) -> None:
    """Train as one process; the observer writes down what it finds."""
    # What the parent has left is not this process's garbage: threads that it belongs to are not here.
    gc.freeze()
    os.environ.update(environment)
    log = observer.out.with_suffix(".log").open("w")
    os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    build = verb.build_model

    def building(*arguments: Any) -> Any:
        observer.before_building()
        return build(*arguments)

    verb.build_model = building
    with watched(observer):
        videodiff("train", *case.overrides(data, f"{observer.out}.run"), f"trainer.max_steps={steps}")


def begin(
    case: Case, data: Path, folder: Path, steps: int, observe: Callable[[Path], Observer]
) -> list[tuple[Any, Path]]:
    """Start the processes of a case, and return each with its file."""
    port, started, name = meeting_port(), [], "_".join(map(str, case)).replace("/", "")
    for rank in range(case.processes):
        out = folder / f"{name}_{rank}.json"
        world = {"WORLD_SIZE": case.processes, "LOCAL_WORLD_SIZE": case.processes, "RANK": rank, "LOCAL_RANK": rank}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "planner"}
        environment = {name: str(value) for name, value in world.items()} if case.processes > 1 else {}
        started.append((apart(train, case, data, observe(out), steps, environment), out))
    return started


def end(case: Case, started: Sequence[tuple[Any, Path]], seconds: float = 300) -> list[dict[str, Any]]:
    """Return what the processes of a case wrote down; if one fails or hangs, end all and say what it printed last."""
    try:
        for process, out in started:
            process.join(seconds)
            if process.exitcode or not out.exists():
                told = out.with_suffix(".log").read_text()[-2000:]
                raise RuntimeError(f"{case}: found exit status {process.exitcode}, expected 0; {told}")
    finally:
        for process, _ in started:
            process.kill()
            process.join()
    return [json.loads(out.read_text()) for _, out in started]


def apart(function: Callable[..., None], *arguments: Any) -> Any:
    """Call a function in a process that has all imports already, and no memory of the cases before it."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def planned(case: Case, data: Path, cluster: Cluster) -> Plan:
    """Return what the planner says of a case."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("plan", [*case.overrides(data, "run"), "clip_mb=0.001", "cluster=cpux2"])
    here = replace(cluster, cards=case.processes)
    choice = Choice(case.strategy, case.recompute, case.sequence, case.accumulate)
    return evaluate(job_of(cfg, cpu=True), here, choice)
