"""The denoiser forward and backward, compared with diffusers' Latte of equal size and with plain matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from subjects.harness import Figure, Settings, figure, ratio, turns
from subjects.latte import build_latte
from torch import nn

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.planning.flops import forward_and_backward, network_of

TITLE = "Denoiser, forward and backward"


class Size(NamedTuple):
    """A network and a batch: clips of `frames` x `side` x `side` values in `channels`, captions of `words`.

    Latte looks at the caption in its blocks over space alone, so `captioned` says the same of ours.
    """

    key: str
    width: int
    heads: int
    blocks: int
    channels: int
    patch: int
    frames: int
    side: int
    clips: int
    words: int
    text_width: int
    dtype: torch.dtype = torch.float32
    captioned: tuple[bool, ...] = (True, False)


WIDE = Size("wide", 1152, 16, 2, 4, 2, 8, 32, 1, 120, 4096)
SMALL = Size("small", 64, 2, 6, 3, 4, 8, 20, 16, 9, 64)
AIMS = {"wide": "at least 1", "wide_bf16": "at least 1.5", "small": "at least 1.5"}


def measure(settings: Settings) -> Iterator[Figure]:
    """Yield the ratios of each size."""
    sizes = [SMALL, WIDE, WIDE._replace(key="wide_bf16", dtype=torch.bfloat16)]
    for size in sizes:
        if settings.tiny:
            size = size._replace(width=32, heads=2, blocks=2, frames=2, side=8, text_width=8, clips=1)
        yield from measure_size(size, settings)


def measure_size(size: Size, settings: Settings) -> Iterator[Figure]:
    """Yield our speed as a multiple of Latte's, and as a share of the speed of plain products."""
    torch.manual_seed(0)
    few = 1 if settings.tiny or size.width > 64 else 4
    side = 256 if settings.tiny else 1536
    a, b = (torch.randn(side, side, dtype=size.dtype) for _ in range(2))
    works = {"ours": repeated(ours(size), few), "Latte": repeated(latte(size), few), "product": lambda: a @ b}
    works["every"] = repeated(ours(size._replace(captioned=(True,))), few)
    taken = turns(works, settings.rounds)
    shape = network_of(
        size.width,
        ("space", "time"),
        size.blocks,
        size.captioned,
        patch=size.channels * size.patch**2,
        words=size.words,
        text_width=size.text_width,
    )
    flops = forward_and_backward(size.frames, (size.side // size.patch) ** 2, shape) * size.clips * few
    name = f"width {size.width}, {str(size.dtype).partition('.')[2]}"
    yield ratio(
        f"{name}: times as fast as Latte", taken["Latte"], taken["ours"], f"vs_latte_{size.key}", AIMS[size.key]
    )
    key = f"vs_latte_{size.key}_every_block"
    yield ratio(f"{name}: the same, with the caption in every block", taken["Latte"], taken["every"], key)
    ideal = [seconds * flops / (2 * side**3) for seconds in taken["product"]]
    yield ratio(f"{name}: share of the speed of plain products", ideal, taken["ours"], f"ceiling_fraction_{size.key}")
    yield figure(f"{name}: milliseconds a step of {size.clips} clips", [1000 * t / few for t in taken["ours"]])
    yield figure(f"{name}: Latte's", [1000 * t / few for t in taken["Latte"]])


def repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
    """Return a function that does the work several times."""
    return lambda: [work() for _ in range(times)] and None


def ours(size: Size) -> Callable[[], None]:
    """Return a forward and backward pass of our network."""
    network, tau, condition = build_ours(size)
    z = noised(size)
    return partial(step, network, lambda: network(z, tau, **condition))


def build_ours(size: Size, step_rank: int = 0) -> tuple[nn.Module, torch.Tensor, dict[str, torch.Tensor]]:
    """Return our network, a flow map if it has a rank, a noise level for each frame, and the conditions."""
    patch = (1, size.patch, size.patch)
    network = SpaceTimeTransformer(
        size.channels,
        patch,
        size.width,
        size.blocks,
        size.heads,
        text_width=size.text_width,
        gate=0.1,
        captioned=size.captioned,
        step_rank=step_rank,
    )
    text, mask = words(size)
    condition = {"text": text, "text_mask": mask, "fps": torch.full((size.clips,), 8.0)}
    return network.to(size.dtype), torch.rand(size.clips, size.frames), condition


def latte(size: Size) -> Callable[[], None]:
    """Return the same pass of Latte, with one noise level for a clip and, as in its own pipeline, no mask."""
    network = like_ours(size)
    return partial(step, network, latte_forward(size, network))


def like_ours(size: Size) -> nn.Module:
    """Return Latte of our network's size."""
    made = build_latte(
        size.width, size.heads, size.blocks, size.channels, size.side, size.patch, size.frames, size.text_width
    )
    return made.to(size.dtype)


def latte_forward(size: Size, network: nn.Module) -> Callable[[], torch.Tensor]:
    """Return a forward pass of Latte."""
    z, when, (text, _) = noised(size).to(size.dtype), torch.full((size.clips,), 500), words(size)
    return lambda: network(z, when, text, return_dict=False)[0]


def noised(size: Size) -> torch.Tensor:
    """Return clips of noise."""
    return torch.randn(size.clips, size.channels, size.frames, size.side, size.side)


def words(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Return text features and their mask: no word is padding."""
    text = torch.randn(size.clips, size.words, size.text_width, dtype=size.dtype)
    return text, torch.ones(size.clips, size.words, dtype=torch.bool)


def step(made: nn.Module, forward: Callable[[], torch.Tensor]) -> None:
    """Run forward and backward."""
    made.zero_grad()
    forward().float().square().mean().backward()
