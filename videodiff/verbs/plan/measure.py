"""This machine as the planner sees it, measured: on a processor each operation, on a GPU products and memory."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import yaml

from videodiff.denoiser.target import targeting
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.machine import keep_freed_memory
from videodiff.parallel.launcher import meeting_port
from videodiff.parallel.recompute import recompute_blocks
from videodiff.planning.forecast.calibration import QUANTILE, Pace, Speed, fit, once, paced, settled
from videodiff.planning.forecast.duration import of_passes
from videodiff.planning.forecast.hardware import Cluster
from videodiff.planning.forecast.trace import Make, passes, weights_of
from videodiff.training.module import parameter_groups
from videodiff.training.optimizer import AdamW, Muon


class Network(NamedTuple):
    """A network that a processor is timed on, with the clips that it is given; `half`: in 16 bits."""

    width: int
    depth: int
    frames: int
    side: int
    clips: int
    half: bool = False


NETWORKS = (
    Network(64, 2, 12, 32, 2),
    Network(96, 2, 8, 48, 2),
    Network(160, 2, 6, 32, 3),
    Network(320, 2, 12, 32, 1),
    Network(448, 2, 5, 32, 1),
    Network(160, 2, 6, 32, 3, half=True),
    Network(320, 2, 12, 32, 1, half=True),
)
WORDS, TEXT_WIDTH, PATCH = 25, 64, 4
WIDTHS = (16, 64, 128, 256, 512, 1152, 2048, 4096)
NUMBERS = 1 << 22


def measure(like: Cluster, path: Path) -> Cluster:
    """Measure this machine, and write it as an option of `cluster`; `like` tells what cannot be measured here."""
    found = of_processor(like)[0] if like.cpu else of_card(like, torch.device("cuda"))
    lines = {"_target_": f"{Cluster.__module__}.{Cluster.__name__}", **asdict(found)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# Measured by `videodiff plan calibrate={path}`.\n{yaml.safe_dump(lines, sort_keys=False)}")
    return found


class Sample(NamedTuple):
    """A network as it is timed, with its loss, and an optimizer of each kind by name."""

    network: SpaceTimeTransformer
    loss: Callable[[], torch.Tensor]
    optimizers: Mapping[str, torch.optim.Optimizer]


def of_processor(like: Cluster, rounds: int = 6) -> tuple[Cluster, float]:
    """Return this machine's processor, and the seconds of its pace; all times are processor seconds of one thread.

    All networks take part in each round, as other work may slow the machine for some seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # As training does.
    keep_freed_memory()
    pace, samples = Pace(), [sample(network) for network in NETWORKS]
    repeating = sample(NETWORKS[0], "selective")
    timed, steps, repeated, paces = [], [], [], []
    for _ in range(rounds):
        timed.append([once(one.network, one.loss, pace) for one in samples])
        steps.append([stepped(one, pace) for one in samples])
        repeated.append(once(repeating.network, repeating.loss, pace, watched=False).plain)
        paces.append(pace())
    sent = max(together(2, NUMBERS))
    torch.set_num_threads(threads)
    timings = [settled(one) for one in zip(*timed, strict=True)]
    tables = of_steps(samples, [quickest(one) for one in zip(*steps, strict=True)])
    usual, speed = statistics.median(paces), fit(timings)
    found = processor(like, speed._replace(tables=speed.tables | tables), usual, sent)
    more = usual * (float(np.quantile(repeated[1:], QUANTILE)) - timings[0][1])
    return replace(found, dispatch_us=dispatching(found, NETWORKS[0], more)), usual


def dispatching(cluster: Cluster, network: Network, more: float) -> float:
    """Return what an operation takes besides in a block of selective recompute, whose passes took `more` seconds."""
    with targeting("cpu"):
        levels = [passes(maker(network, level), network.depth, network.clips) for level in ("none", "selective")]
    once, again = (float(of_passes(one, cluster, 1.0, compiled=False).sum()) for one in levels)
    return 1e6 * max(0.0, more - (again - once)) / (2 * (len(levels[1].kinds) - len(levels[0].kinds)))


def maker(given: Network, level: str = "none") -> Make:
    """Return what makes one of the networks, with so many blocks."""

    def make(blocks: int) -> tuple[SpaceTimeTransformer, Callable[[int], torch.Tensor]]:
        network = SpaceTimeTransformer(
            patch=(1, PATCH, PATCH),
            width=given.width,
            depth=blocks,
            heads=max(given.width // 64, 1),
            text_width=TEXT_WIDTH,
            gate=1.0,
        )
        recompute_blocks(network, level)
        random = cache(partial(clips_of, given.frames, given.side))

        def loss(clips: int) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=given.half):
                return network(**random(clips)).square().mean()

        return network, loss

    return make


def sample(given: Network, level: str = "none") -> Sample:
    """Return one of the networks, with clips; of those in 32 bits the optimizers are timed too."""
    network, loss = maker(given, level)(given.depth)
    optimizers = {}
    if not given.half and level == "none":
        groups = parameter_groups((f".{name}", p) for name, p in network.named_parameters())
        optimizers = {"optimizer": AdamW(network.parameters(), lr=1e-6), "muon": Muon(groups, lr=1e-6)}
    return Sample(network, partial(loss, given.clips), optimizers)


def stepped(one: Sample, pace: Callable[[], float]) -> dict[str, float]:
    """Return the paces of a step of each optimizer, with the norm of the gradient."""

    def step(optimizer: torch.optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_(one.network.parameters(), 1.0)
        optimizer.step()

    found = {
        name: paced(lambda optimizer=optimizer: step(optimizer), pace) for name, optimizer in one.optimizers.items()
    }
    return {name: spent / slow for name, (spent, slow) in found.items()}


def quickest(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the paces of a step of each optimizer over the rounds; the first makes its state."""
    return {name: float(np.quantile([step[name] for step in steps[1:]], QUANTILE)) for name in steps[0]}


def of_steps(samples: Sequence[Sample], steps: Sequence[dict[str, float]]) -> dict[str, dict[int, float]]:
    """Return the tables of the optimizers: bytes by the bytes of a weight, and FLOPs of Muon's products by width."""
    tables: dict[str, dict[int, float]] = {"optimizer": {}, "muon": {}}
    for one, spent in zip(samples, steps, strict=True):
        if spent:
            weights = weights_of(one.network)
            tables["optimizer"][36 * weights.all // weights.tensors] = 36 * weights.all / spent["optimizer"]
            # Muon has fewer moments than AdamW, and its products take what it takes longer.
            more = max(spent["muon"] - spent["optimizer"], 0.1 * spent["muon"])
            tables["muon"][weights.width] = weights.orthogonal / more
    return tables


def processor(like: Cluster, speed: Speed, usual: float, sent: float) -> Cluster:
    """Return the record of a processor from what was measured at a pace of `usual` seconds."""
    kinds = {name: {at: rate / usual for at, rate in table.items()} for name, table in speed.tables.items()}
    full = max(kinds["products"].values())
    half = max(kinds.get("products of 16 bits", kinds["products"]).values())
    return replace(
        like,
        tflops={"half": half / 1e12, "full": full / 1e12},
        products={at: rate / full for at, rate in sorted(kinds["products"].items())},
        memory_gb_per_s=max(kinds["add"].values()) / 1e9,
        traffic=1.0,
        launch_us=1e6 * usual * speed.launch,
        node_gb_per_s=1e-9 / sent,
        latency_us=0.0,
        kinds=kinds,
    )


def clips_of(frames: int, side: int, clips: int) -> dict[str, torch.Tensor]:
    """Return what a denoiser is given of random clips."""
    return {
        "z": torch.randn(clips, 3, frames, side, side),
        "tau": torch.rand(clips, frames),
        "text": torch.randn(clips, WORDS, TEXT_WIDTH),
        "text_mask": torch.ones(clips, WORDS, dtype=torch.bool),
        "fps": torch.full((clips,), 8.0),
    }


def together(processes: int, numbers: int) -> list[float]:
    """Return the processor seconds in which each of some processes sends a byte of a sum over all."""
    context, port, started = multiprocessing.get_context("spawn"), meeting_port(), []
    for rank in range(processes):
        reader, writer = context.Pipe(duplex=False)
        started.append((context.Process(target=summing, args=(rank, processes, port, numbers, writer)), reader))
        started[-1][0].start()
        writer.close()
    found = [reader.recv() for _, reader in started]
    for process, _ in started:
        process.join()
    return found


def summing(rank: int, world: int, port: int, numbers: int, answer: Connection) -> None:
    """Sum numbers over all processes, and say how long a byte takes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    values, spent = torch.ones(numbers), []
    for _ in range(5):
        start = time.process_time()
        dist.all_reduce(values)
        spent.append(time.process_time() - start)
    answer.send(statistics.median(spent[1:]) / (2 * (world - 1) / world * 4 * numbers))
    dist.destroy_process_group()


def of_card(like: Cluster, device: torch.device) -> Cluster:
    """Return a card: the shares of its data sheet that products reach, the speed of its memory, and of a launch."""
    rates = {width: product(width, torch.bfloat16, device) for width in WIDTHS}
    numbers = torch.empty(1 << 26, dtype=torch.bfloat16, device=device)
    moved = 3 * numbers.nbytes / seconds_of(lambda: numbers + numbers, device)
    one = torch.ones(1, device=device)
    return replace(
        like,
        products={width: rate / (1e12 * like.tflops["half"]) for width, rate in rates.items()},
        memory_gb_per_s=moved / 1e9,
        traffic=1.0,
        launch_us=1e6 * seconds_of(lambda: one + one, device),
    )


def product(width: int, kind: torch.dtype, device: torch.device, rows: int = 16384) -> float:
    """Return the FLOPs a second of a product of many rows by a square matrix."""
    a, b = torch.randn(rows, width, device=device, dtype=kind), torch.randn(width, width, device=device, dtype=kind)
    return 2 * rows * width * width / seconds_of(lambda: a @ b, device)


def seconds_of(work: Callable[[], Any], device: torch.device, times: int = 20) -> float:
    """Return the seconds of one of many calls, after some that are not counted."""
    for _ in range(3):
        work()
    settle(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    settle(device)
    return (time.perf_counter() - start) / times


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
