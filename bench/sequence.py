"""Sequence parallelism on CPU processes: what each process sends, and what memory its activations take.

    python bench/sequence.py [--processes 2] [--width 128] [--depth 8] [--frames 16] [--side 32]

Sent are the bytes that enter collectives in a forward and a backward pass, counted where torch calls them, for the axis
switch and for Ulysses (heads) in the blocks over time. Memory is the peak of the process above what it held before.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.parallel.launcher import meeting_port
from videodiff.parallel.sequence.group import SequenceGroup, shares
from videodiff.parallel.sequence.switch import Spread, attend_by_heads, gather, own, share_with

MMAP_THRESHOLD = -3
functional = torch.ops._c10d_functional
COLLECTIVES = {
    functional.all_to_all_single.default,
    functional.all_gather_into_tensor.default,
    functional.reduce_scatter_tensor.default,
    functional.all_reduce.default,
}
Clips = dict[str, Tensor]


class Counted(TorchDispatchMode):
    """Writes down the bytes that each collective is given, in forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if function in COLLECTIVES:
            self.bytes.append(args[0].numel() * args[0].element_size())
        return function(*args, **(kwargs or {}))


class Asked(NamedTuple):
    """The size of the network and of the clips."""

    width: int
    depth: int
    frames: int
    side: int
    axes: tuple[str, ...] = ("space", "time")


def main() -> None:
    """Measure one process and several, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"processes": 2, "width": 128, "depth": 8, "frames": 16, "side": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = vars(parser.parse_args())
    processes = asked.pop("processes")
    alone, *_ = together(1, memory, Asked(**asked))
    each = max(together(processes, memory, Asked(**asked)))
    switched, by_heads = together(processes, sent, Asked(**asked))[0]
    print(f"sent by a process, axis switch  {switched / 2**20:9.2f} MiB a step and clip")
    print(f"sent by a process, Ulysses      {by_heads / 2**20:9.2f} MiB, {switched / by_heads:.3f} of it by the switch")
    print(f"activations of one process      {alone / 2**20:9.1f} MiB")
    print(f"activations of each of {processes:<8} {each / 2**20:9.1f} MiB, {each / alone:.3f} of it")


def together(processes: int, function: Callable[[SequenceGroup, Any], Any], asked: Any) -> list[Any]:
    """Return what a function returns on each of some processes that form one group."""
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    first = context.Process(target=take_parts, args=(function, asked, processes, writer))
    first.start()
    writer.close()
    try:
        # A process that ends without an answer is the end of its pipe.
        return reader.recv()
    finally:
        first.join()


def take_parts(function: Callable[..., Any], asked: Any, processes: int, answer: Any) -> None:
    """Call the function on each of some processes; they are forked from this one, which has imported everything."""
    port = meeting_port()
    context, started, answers = multiprocessing.get_context("fork"), [], []
    for rank in range(processes):
        reader, writer = context.Pipe(duplex=False)
        part = (function, asked, rank, processes, port, writer)
        started.append(context.Process(target=take_part, args=part, daemon=True))
        started[-1].start()
        writer.close()
        answers.append(reader)
    found: dict[int, Any] = {}
    while waiting := [answer for rank, answer in enumerate(answers) if rank not in found]:
        found |= {answers.index(answer): answer.recv() for answer in multiprocessing.connection.wait(waiting)}
    for process in started:
        process.join()
    answer.send([found[rank] for rank in range(processes)])


def take_part(function: Callable[..., Any], asked: Any, rank: int, world: int, port: int, answer: Any) -> None:
    """Call the function on this rank."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    group = SequenceGroup(world)
    group.join()
    answer.send(function(group, asked))
    dist.destroy_process_group()


def network(asked: Asked) -> SpaceTimeTransformer:
    """Return a network whose weights matter everywhere, the same on every process."""
    made = SpaceTimeTransformer(width=asked.width, depth=asked.depth, axes=asked.axes, text_width=8)
    torch.manual_seed(0)
    for p in made.parameters():
        nn.init.normal_(p, std=0.1)
    return made


def clips(asked: Asked, batch: int = 1) -> Clips:
    """Return what a denoiser is given."""
    torch.manual_seed(1)
    return {
        "z": torch.randn(batch, 3, asked.frames, asked.side, asked.side),
        "tau": torch.rand(batch, asked.frames),
        "text": torch.randn(batch, 7, 8),
        "text_mask": torch.ones(batch, 7, dtype=torch.bool),
        "fps": torch.full((batch,), 8.0),
    }


def step(denoiser: Callable[..., Tensor], given: Clips) -> Tensor:
    """Take a forward and a backward pass; return the output."""
    made = denoiser(**given)
    made.square().mean().backward()
    return made.detach()


def sent(group: SequenceGroup, asked: Asked) -> tuple[int, int]:
    """Return the bytes that enter collectives by axis switch and by Ulysses, whose outputs must agree."""
    outputs, counts = [], []
    for share in (share_with, share_by_heads):
        denoiser = network(asked)
        share(denoiser, group)
        with Counted() as counted:
            outputs.append(step(denoiser, clips(asked)))
        counts.append(sum(counted.bytes))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    return counts[0], counts[1]


def share_by_heads(denoiser: SpaceTimeTransformer, group: SequenceGroup) -> None:
    """Share the frames in all blocks, and the heads while a block over time attends: Ulysses for the same network."""
    for block in denoiser.blocks:
        if block.axes == "time":
            block.attention.attend = partial(attend_by_heads, block.attention.attend, group)

    def forward(z: Tensor, tau: Tensor, text: Tensor, text_mask: Tensor, fps: Tensor) -> Tensor:
        t, h, w = z.shape[2], z.shape[3] // denoiser.patch[1], z.shape[4] // denoiser.patch[2]
        level = denoiser.level(tau, fps)
        known = denoiser.conditions(level, text, text_mask, denoiser.rotary(t, h, w, z.device))
        x, modulation = denoiser.tokens(own(z, 2, group)), own(known.modulation, 1, group)
        rotary = {**known.rotary, "time": Spread(known.rotary["time"], shares(t, group.size))}
        for block in denoiser.blocks:
            x = block(x, modulation, known.text, known.text_mask, rotary[block.axes])
        return denoiser.clip(gather(denoiser.predict(x, own(level, 1, group)), group, 1, t), h)

    denoiser.forward = forward


def memory(group: SequenceGroup, asked: Asked) -> int:
    """Return the most bytes that this process held during a step above what it held before."""
    # Otherwise glibc keeps freed tensors, and the next ones cost nothing.
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)
    denoiser = network(asked)
    if group.size > 1:
        share_with(denoiser, group)
    # What is there once, gradients among it, is there from now on.
    step(denoiser, clips(asked._replace(frames=2)))
    given = clips(asked)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step(denoiser, given)
    return status("VmHWM") - before


def status(name: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
