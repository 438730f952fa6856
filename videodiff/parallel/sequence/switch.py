"""Sequence parallelism by axis switch (Dynamic Sequence Parallelism, arXiv 2403.10266), from outside and in place.

The processes of a group share the tokens `b t s d` of the same clips. A block over space runs on whole frames, each
process on its share of them; a block over time runs on whole columns, each process on its share of the positions. One
all-to-all at the seam between the two kinds takes the tokens from one to the other. A block over both axes takes the
tokens as they lie and shares its heads (Ulysses, arXiv 2309.14509): one all-to-all before attention and one after it.

Shares may differ by one: nothing is padded, so no mask has to hide anything. A process with an empty share (a picture
has one frame) takes part with one token that it sends to nobody, because kernels may not accept an empty tensor.

Every process ends with the whole output and takes the whole loss. The backward pass through the last exchange sums over
the group, so each process gets `size` times its own tokens' part of the gradient. Then the mean over all ranks, which
DDP and ZeRO take, is the gradient of one process, and no factor is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single

from videodiff.parallel.sequence.group import SequenceGroup, shares

# The axis of tokens `b t s d` that is shared.
FRAMES, POSITIONS = 1, 2
# The axis that must be whole for a kind of block; the other axis is shared. A block over both axes takes either.
SHARED = {"space": FRAMES, "time": POSITIONS}


class Spread(NamedTuple):
    """A rotary table for the tokens of all processes, one process after the other, and how many tokens each holds."""

    table: Tensor
    counts: list[int]


def share_clips(denoiser: nn.Module, strategy: Any) -> None:
    """Let the processes of each sequence group share the work on a clip, if the strategy has such groups."""
    group = getattr(strategy, "sequence", SequenceGroup())
    if group.size > 1:
        share_with(denoiser, group)


def share_with(denoiser: nn.Module, group: SequenceGroup) -> None:
    """Let the processes of a group share the work on each clip; all of them have to call the denoiser together."""
    if not all(hasattr(denoiser, step) for step in ("tokens", "level", "conditions", "predict", "clip", "rotary")):
        raise ValueError(
            f"strategy.sequence_parallel: found {group.size} with the model {type(denoiser).__name__}, expected 1: "
            "only a SpaceTimeTransformer can be shared"
        )
    for block in denoiser.blocks:
        if block.axes not in SHARED:
            block.attention.attend = partial(attend_by_heads, block.attention.attend, group)
    denoiser.forward = partial(forward, denoiser, group)


def forward(
    denoiser: nn.Module,
    group: SequenceGroup,
    z: Tensor,
    tau: Tensor,
    text: Tensor,
    text_mask: Tensor,
    fps: Tensor,
    rho: Tensor | None = None,
) -> Tensor:
    """Run the denoiser's `forward` on this process's share of the tokens."""
    pt, ph, pw = denoiser.patch
    t, h, w = z.shape[2] // pt, z.shape[3] // ph, z.shape[4] // pw
    sizes, shared = {FRAMES: t, POSITIONS: h * w}, FRAMES
    level = denoiser.level(tau, fps, rho)
    known = denoiser.conditions(level, text, text_mask, denoiser.rotary(t, h, w, z.device))
    x = denoiser.tokens(own(z.unflatten(2, (t, pt)), 2, group).flatten(2, 3))
    for block in denoiser.blocks:
        wanted = SHARED.get(block.axes, shared)
        if wanted != shared:
            x = exchange(x, group, give=wanted, take=shared, counts=shares(sizes[shared], group.size))
            shared = wanted
        modulation = own(known.modulation, 1, group) if shared == FRAMES else known.modulation
        rotary = known.rotary[block.axes]
        if block.axes not in SHARED:
            rotary = spread(rotary, t, shared, group.size)
        x = block(x, modulation, known.text, known.text_mask, rotary, rho is not None)
    x = denoiser.predict(x, own(level, 1, group) if shared == FRAMES else level)
    return denoiser.clip(gather(x, group, shared, sizes[shared]), h)


def attend_by_heads(attend: partial, group: SequenceGroup, qkv: Tensor, rotary: Spread) -> Tensor:
    """Attend over the tokens of all processes with this process's share of the heads; qkv: `three b m n e`."""
    heads, tokens = shares(qkv.shape[2], group.size), qkv.shape[3]
    qkv = exchange(qkv, group, give=2, take=3, counts=rotary.counts)
    return exchange(attend(qkv, rotary.table), group, 2, 1, heads, sizes=rotary.counts, spare=tokens)


def spread(table: Tensor, t: int, shared: int, size: int) -> Spread:
    """Return the table of a block over both axes in the order in which the processes' tokens come together."""
    grid = table.unflatten(0, (t, -1))
    parts = grid.split(shares(grid.shape[shared - 1], size), dim=shared - 1)
    return Spread(torch.cat([part.flatten(0, 1) for part in parts]), [p.shape[0] * p.shape[1] for p in parts])


def own(x: Tensor, axis: int, group: SequenceGroup) -> Tensor:
    """Return this process's share of an axis; if the share is empty, return the first slice instead."""
    held = shares(x.shape[axis], group.size)
    return x.narrow(axis, sum(held[: group.place]) if held[group.place] else 0, max(held[group.place], 1))


def exchange(
    x: Tensor,
    group: SequenceGroup,
    give: int,
    take: int,
    counts: Sequence[int],
    sizes: Sequence[int] | None = None,
    spare: int = 1,
) -> Tensor:
    """Share the axis `give`, which is whole, and make the axis `take` whole, which is shared: one all-to-all.

    counts: how many slices of `take` each process holds; sizes: how many of `give` each shall hold, None: even shares.
    A process that is to hold none gets `spare` slices of zeros, which `counts` of the next exchange leaves out.
    """
    place = group.place
    sizes = shares(x.shape[give], group.size) if sizes is None else sizes
    sent = x.narrow(take, 0, counts[place]).split(list(sizes), dim=give)
    shape, wanted = list(x.shape), []
    for count in counts:
        shape[give], shape[take] = sizes[place], count
        wanted.append(list(shape))
    y = torch.cat(by_all_to_all(sent, wanted, group), dim=take)
    return y if sizes[place] else filled(y, give, spare)


def gather(x: Tensor, group: SequenceGroup, axis: int, count: int) -> Tensor:
    """Make an axis of `count` slices whole on every process; backward, the gradients of all processes are summed."""
    counts = shares(count, group.size)
    x, shape, wanted = x.narrow(axis, 0, counts[group.place]), list(x.shape), []
    for held in counts:
        shape[axis] = held
        wanted.append(list(shape))
    return torch.cat(by_all_to_all([x] * group.size, wanted, group), dim=axis)


def by_all_to_all(sent: Sequence[Tensor], shapes: Sequence[Sequence[int]], group: SequenceGroup) -> list[Tensor]:
    """Send one tensor to each process and return what each has sent, in these shapes; differentiable, and compiles."""
    flat = torch.cat([part.reshape(-1) for part in sent])
    sizes = [size_of(shape) for shape in shapes]
    received = all_to_all_single(flat, sizes, [part.numel() for part in sent], group.group)
    return [part.view(shape) for part, shape in zip(received.split(sizes), shapes, strict=True)]


def size_of(shape: Sequence[int]) -> int:
    """Return the number of values in a tensor of this shape; the sizes may be symbols of the compiler."""
    size = 1
    for length in shape:
        size = size * length
    return size


def filled(x: Tensor, axis: int, count: int) -> Tensor:
    """Return `x`, which is empty along an axis, with so many slices of zeros there.

    The result still depends on `x`: otherwise this process would miss the exchange of the backward pass.
    """
    shape = list(x.shape)
    shape[axis] = count
    return torch.cat([x, x.new_zeros(shape)], dim=axis)
