"""This machine as the planner sees it, measured: on a processor each operation, on a GPU products and memory."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.parallel.launcher import meeting_port
from videodiff.planning.forecast.calibration import Pace, Speed, fit, once
from videodiff.planning.forecast.hardware import Cluster
from videodiff.training.optimizer import AdamW

# The networks that a processor is timed on: width, blocks, frames, rows of pixels, clips, 16 bits.
NETWORKS = (
    (64, 2, 12, 32, 2, False),
    (96, 2, 8, 48, 2, False),
    (160, 2, 6, 32, 3, False),
    (320, 2, 12, 32, 1, False),
    (448, 2, 5, 32, 1, False),
    (160, 2, 6, 32, 3, True),
    (320, 2, 12, 32, 1, True),
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


def of_processor(like: Cluster, rounds: int = 4, linked: bool = True) -> tuple[Cluster, float]:
    """Return this machine's processor, and the seconds of its pace; all times are processor seconds of one thread.

    linked: whether to measure what two processes send to each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pace, passes, optimizer = Pace(), [], {}
    usual = statistics.median(pace() for _ in range(20))
    for width, depth, frames, side, clips, half in NETWORKS:
        network = SpaceTimeTransformer(
            patch=(1, PATCH, PATCH),
            width=width,
            depth=depth,
            heads=max(width // 64, 1),
            text_width=TEXT_WIDTH,
            gate=1.0,
        )
        given = clips_of(frames, side, clips)

        def loss(network: SpaceTimeTransformer = network, given: dict = given, half: bool = half) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return network(**given).square().mean()

        passes.append(once(network, loss, pace, rounds))
        optimizer |= stepped(network, pace) if not half else {}
    sent = max(together(2, NUMBERS)) if linked else 1e-9 / like.node_gb_per_s
    torch.set_num_threads(threads)
    return processor(like, fit(passes), optimizer, usual, sent), usual


def processor(like: Cluster, speed: Speed, optimizer: dict[int, float], usual: float, sent: float) -> Cluster:
    """Return the record of a processor from what was measured at a pace of `usual` seconds."""
    kinds = {name: {at: rate / usual for at, rate in table.items()} for name, table in speed.tables.items()}
    kinds["optimizer"] = {at: rate / usual for at, rate in optimizer.items()}
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


def stepped(network: SpaceTimeTransformer, pace: Callable[[], float]) -> dict[int, float]:
    """Return the bytes of each pace in which the optimizer's step moves them, by the bytes."""
    optimizer, spent = AdamW(network.parameters(), lr=1e-6), []
    for _ in range(4):
        before, start = pace(), time.thread_time()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        spent.append((time.thread_time() - start) / ((before + pace()) / 2))
    size = 36 * sum(p.numel() for p in network.parameters())
    return {size: size / statistics.median(spent[1:])}


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
