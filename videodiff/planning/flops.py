"""The FLOPs of the denoiser, exact and by part; docs/performance.md writes the sums out.

A multiply-add counts as two. Only matrix products count, as everywhere in the field: norms, modulations and GELU cost
memory traffic, not arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Network(NamedTuple):
    """The sizes of a denoiser that decide its cost.

    `axes`: the axis of attention of each block, space, time or spacetime. `captioned`: whether each block looks at the
    caption. `patch`: values of a token. `words`: text tokens of a clip, `text_width` wide. `trained_text`: the text
    encoder is trained too. `step_rank`: the rank of the changes for steps of a flow map, which alone learn then; 0:
    none. `forwards`: passes without a gradient in a training step, beside the one that learns; `own`: how many of them
    take a step of a flow map.
    """

    width: int
    axes: tuple[str, ...]
    captioned: tuple[bool, ...]
    patch: int
    words: int
    text_width: int
    heads: int = 1
    mlp_ratio: float = 4.0
    trained_text: bool = False
    step_rank: int = 0
    forwards: float = 0.0
    own: float = 0.0


class Flops(NamedTuple):
    """The FLOPs of the denoiser's forward pass for one clip.

    projections: query, key, value and output of self-attention; space, time, spacetime: its two products by axis;
    text: cross-attention with its projections; mlp: the feed-forward layers; changes: what a step of a flow map adds to
    them; patches: embedding and head; conditions: the layers that noise levels, frame rate and words pass before the
    blocks.
    """

    projections: int
    space: int
    time: int
    spacetime: int
    text: int
    mlp: int
    changes: int
    patches: int
    conditions: int

    @property
    def blocks(self) -> int:
        """The FLOPs of the blocks, which full recompute repeats."""
        return self.total - self.patches - self.conditions

    @property
    def total(self) -> int:
        """The FLOPs of all parts."""
        return sum(self)


def forward(time: int, space: int, network: Network) -> Flops:
    """Return the FLOPs of one clip of `time` x `space` tokens; with a rank for steps it takes one."""
    tokens, width, blocks = time * space, network.width, len(network.axes)
    seen = {"space": space, "time": time, "spacetime": tokens}
    attention = {axis: network.axes.count(axis) * 4 * tokens * seen[axis] * width for axis in seen}
    # Cross-attention: query and output for each token, key and value for each word, and the two products.
    text = 4 * tokens * width**2 + 4 * network.words * width**2 + 4 * tokens * network.words * width
    words = 2 * network.words * (network.text_width + width) * width
    # Each frame has a level and the clip one frame rate, 256 numbers each; a frame has six vectors of modulation. A
    # step of a flow map has a length too.
    levels = ((2 if network.step_rank else 1) * time + 1) * 2 * (256 + width) * width + time * 12 * width**2
    hidden = int(width * network.mlp_ratio)
    return Flops(
        projections=blocks * 8 * tokens * width**2,
        **attention,
        text=sum(network.captioned) * text,
        mlp=blocks * 4 * tokens * width * hidden,
        # Beside queries, keys and values, and beside both feed-forward layers: down to the rank, and up.
        changes=blocks * 2 * tokens * network.step_rank * (4 * width + 2 * (width + hidden)),
        patches=4 * tokens * network.patch * width,
        conditions=words + levels,
    )


def forward_and_backward(time: int, space: int, network: Network) -> int:
    """Return the FLOPs that one clip takes in training, on average and without recompute.

    The backward pass takes two products for each product of the forward pass. The first layers take one: patches, noise
    levels, frame rate and the words of a frozen encoder need no gradient.
    """
    once = forward(time, space, network).total
    velocity = forward(time, space, network._replace(step_rank=0)).total
    without = round((network.forwards - network.own) * velocity + network.own * once)
    if network.step_rank:
        return without + step_and_backward(time, space, network)
    first = time * space * network.patch + (time + 1) * 256
    first += 0 if network.trained_text else network.words * network.text_width
    return 3 * once - 2 * first * network.width + without


def step_and_backward(time: int, space: int, network: Network) -> int:
    """Return the FLOPs of one clip in the pass of a flow map that learns.

    Frozen layers take one product for one, which passes the gradient on to the change before them; there is none before
    patches, words and noise levels. Products of attention take two, and so do layers that learn; the first layer of
    the step's own embedding takes one.
    """
    once, tokens, width = forward(time, space, network), time * space, network.width
    captioned = sum(network.captioned)
    looked = captioned * 4 * tokens * network.words * width
    twice = once.space + once.time + once.spacetime + once.changes + looked + time * 2 * width**2
    head, modulation, embedding = 2 * tokens * network.patch * width, time * 12 * width**2, time * 2 * 256 * width
    frozen = once.projections + once.mlp + captioned * 4 * tokens * width**2 + head + modulation
    return once.total + 2 * twice + frozen + embedding


def recomputed(time: int, space: int, network: Network, level: str = "none", every: int = 1) -> int:
    """Return the FLOPs that recompute repeats for one clip: 0 unless recompute is full.

    Selective recompute keeps the results of products. `every`: only every k-th block is computed again.
    """
    if level != "full":
        return 0
    some = network._replace(axes=network.axes[::every], captioned=network.captioned[::every])
    return forward(time, space, some).blocks


def network_of(
    width: int, axes: Sequence[str], depth: int, captioned: Sequence[bool] = (True,), **rest: int | float | bool
) -> Network:
    """Return the record of a network whose `axes` and `captioned` are repeated over `depth` blocks."""
    return Network(width, repeated(axes, depth), repeated(captioned, depth), **rest)


def repeated(pattern: Sequence[T], depth: int) -> tuple[T, ...]:
    """Return a pattern repeated to this length."""
    return tuple(pattern[i % len(pattern)] for i in range(depth))
