"""The parts of the demo's training step, the share that is not training, and the time from command to first step."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from lightning.pytorch.loggers import CSVLogger
from subjects.harness import ROOT, Figure, Settings, figure, turns

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.diffusion.path import RectifiedFlow
from videodiff.training.guard import finite
from videodiff.training.module import parameter_groups
from videodiff.training.optimizer import Muon, average

TITLE = "Training step of the demo"
FRAMES, SIDE, CLIPS, WORDS, WIDTH = 8, 20, 16, 9, 64
AXES = ("space", "time", "space", "time", "spacetime", "spacetime")
# The demo writes a row of its loss at every tenth step.
LOGGED = 10


def measure(settings: Settings) -> Iterator[Figure]:
    """Yield the figures of a step's parts, then of the start."""
    with tempfile.TemporaryDirectory() as folder:
        works = parts(Path(folder))
        taken = turns(works, settings.rounds, warm=2)
        taken["log"] = [seconds / LOGGED for seconds in taken["log"]]
        rounds = [dict(zip(taken, row, strict=True)) for row in zip(*taken.values(), strict=True)]
        for name in works:
            yield figure(f"milliseconds a step: {name}", [1000 * one for one in taken[name]])
        # The optimizer's step moves the average too: it counts once.
        whole = [sum(one.values()) - one["average"] for one in rounds]
        shares = [(r["average"] + r["check"] + r["log"]) / all_ for r, all_ in zip(rounds, whole, strict=True)]
        yield figure("share of average, checks and log in a step", shares, "overhead_fraction", "below 0.02")
        if not settings.tiny:
            yield from start(Path(folder), settings)


def parts(folder: Path) -> dict[str, Callable[[], object]]:
    """Return each part of a step as a function, in the order of a step."""
    torch.manual_seed(0)
    network = SpaceTimeTransformer(3, (1, 4, 4), WIDTH, len(AXES), 2, axes=AXES, text_width=WIDTH)
    levels = NoiseLevels({"prefix_3": 0.45, "prefix_1": 0.3, "lead_1": 0.25}, base_shift=5.0, base_tokens=3200)
    objective = Objective(RectifiedFlow(), levels, prediction="x", loss="x")
    x, text = torch.randn(CLIPS, 3, FRAMES, SIDE, SIDE), torch.randn(CLIPS, WORDS, WIDTH)
    condition = {
        "text": text,
        "text_mask": torch.ones(CLIPS, WORDS, dtype=torch.bool),
        "fps": torch.full((CLIPS,), 5.0),
    }
    named = [(f"denoiser.{name}", p) for name, p in network.named_parameters()]
    optimizer = Muon(parameter_groups(named), lr=1e-4)
    weights, logger = [p for _, p in named], CSVLogger(str(folder))
    state = {"draws": None}

    def draw() -> None:
        seeds = clip_seeds(0, 1, range(CLIPS))
        state["draws"] = [objective.draw(clip, seed) for clip, seed in zip(x, seeds, strict=True)]

    def forward_and_backward() -> None:
        network.zero_grad()
        tau, eps = (torch.stack([drawn[i] for drawn in state["draws"]]) for i in (0, 1))
        objective.error(network, x, eps, tau, condition).mean().backward()

    def log() -> None:
        logger.log_metrics({"train/loss": 1.0, "train/grad_norm": 1.0, "train/lr": 1.0}, step=1)
        logger.save()

    return {
        "noise": draw,
        "forward and backward": forward_and_backward,
        "optimizer with average": optimizer.step,
        "average": lambda: average(optimizer, 0.99),
        "check": lambda: finite(p.grad for p in weights if p.grad is not None),
        "log": log,
    }


def start(folder: Path, settings: Settings) -> Iterator[Figure]:
    """Yield the seconds from the command to the end of the first step, imports included, and the seconds of --help."""
    command = [sys.executable, "-m", "videodiff"]
    clip = ["world=bouncing", "world.balls={1:1,2:0,3:0}", "size=20", "crf=10", "clips=32", f"out={folder}/clips"]
    train = ["train", "experiment=bouncing_cpu", f"data.root={folder}/data", "data.validation_root=null"]
    train += ["trainer.max_steps=1", "~callbacks.samples", "~callbacks.checkpoints", "logger=[]"]
    for prepare in (["simulate", *clip], ["pack", f"source={folder}/clips", f"out={folder}/data"]):
        subprocess.run([*command, *prepare], check=True, cwd=ROOT, capture_output=True)
    found: dict[str, list[float]] = {"help": [], "first": [], "processor": [], "two": []}
    for number in range(min(settings.rounds, 3)):
        seconds, _ = timed([*command, "--help"])
        found["help"].append(seconds)
        seconds, processor = timed([*command, *train, f"run={folder}/run{number}"])
        found["first"].append(seconds)
        found["processor"].append(processor)
        two = ["trainer.accelerator=cpu", "trainer.devices=2", "strategy=ddp"]
        found["two"].append(timed([*command, *train, *two, f"run={folder}/two{number}"])[0])
    yield figure("seconds to the end of the first step of the demo", found["first"], "first_step_s", "below 15")
    yield figure("processor seconds to the end of the first step", found["processor"])
    yield figure("seconds to it in two processes", found["two"], "first_step_two_s", "below 15")
    yield figure("seconds of videodiff --help", found["help"], "help_s", "below 1")


def timed(command: list[str]) -> tuple[float, float]:
    """Return wall and processor seconds of a command."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
