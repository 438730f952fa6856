"""The whole network against its description, token by token in plain arithmetic: what trained weights mean.

Coordinates, frequencies and the order of channels are not learned. Whoever changes one of them changes what every saved
network predicts, so their values stand here a second time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from videodiff.denoiser.transformer import SpaceTimeTransformer

WIDTH, HEADS, PATCH = 40, 2, (2, 3, 2)
# Tokens over time, down and across.
T, H, W = 2, 2, 4
# Frame, row and column of each token.
TOKENS = list(itertools.product(range(T), range(H), range(W)))
Linear = Callable[[str, Tensor], Tensor]


def network(padding: str) -> SpaceTimeTransformer:
    """Return a network of all kinds of block, every weight away from its start."""
    how = {"axes": ("space", "time", "spacetime"), "captioned": (True, False), "mlp_ratio": 3.0, "step_rank": 2}
    net = SpaceTimeTransformer(2, PATCH, WIDTH, 4, HEADS, text_width=6, padding=padding, **how)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return net


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def waves(value: Tensor | float, width: int, longest: float) -> Tensor:
    """Return cosines, then sines, of a number at frequencies from 1 down to 1 / longest."""
    n = width // 2
    angle = value * longest ** (-torch.arange(n) / (n - 1))
    return torch.cat([angle.cos(), angle.sin()])


def centre(place: int, count: int) -> float:
    """Return where a row or a column lies: a square view spans 16."""
    return (place + 0.5 - count / 2) * 16 / math.sqrt(H * W)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    off = x - x.mean(-1, keepdim=True)
    return off / (off.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift


def turned(x: Tensor, axes: str) -> Tensor:
    """Turn the channel pairs of each token: the first pairs by its frame, the next by its row, the last by its column.

    Axes that a block does not attend over have no pairs; what is left over goes to the first axes.
    """
    of_axes = {"space": (1, 2), "time": (0,), "spacetime": (0, 1, 2)}[axes]
    found = []
    for channels, (f, r, c) in zip(x, TOKENS, strict=True):
        place, pairs, angles = (f, centre(r, H), centre(c, W)), len(channels) // 2, []
        for number, axis in enumerate(of_axes):
            n = pairs // len(of_axes) + (number < pairs % len(of_axes))
            angles += [place[axis] * 100.0 ** (-i / (n - 1)) for i in range(n)]
        for (a, b), angle in zip(channels.view(-1, 2), angles, strict=True):
            found += [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
    return torch.stack(found).view_as(x)


def attended(q: Tensor, k: Tensor, v: Tensor, norms: nn.Module, axes: str | None) -> Tensor:
    """Attend head by head; `axes`: None for words, which have no place."""

    def seen(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return {"space": one[0] == other[0], "time": one[1:] == other[1:], "spacetime": True}[axes]

    found = []
    for q_, k_, v_ in zip(*(x.split(WIDTH // HEADS, -1) for x in (q, k, v)), strict=True):
        q_, k_ = (
            x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
            for x, norm in ((q_, norms.norm_q), (k_, norms.norm_k))
        )
        if axes is not None:
            q_, k_ = turned(q_, axes), turned(k_, axes)
        weight = (q_ @ k_.T / math.sqrt(WIDTH // HEADS)).exp()
        if axes is not None:
            weight = weight * torch.tensor([[float(seen(one, other)) for other in TOKENS] for one in TOKENS])
        found.append(weight / weight.sum(-1, keepdim=True) @ v_)
    return torch.cat(found, -1)


def through(block: nn.Module, linear: Linear, x: Tensor, modulation: Tensor, words: Tensor, step: bool) -> Tensor:
    """Return the tokens (n, WIDTH) after a block; `modulation` is (n, 6, WIDTH), `words` are those of the caption."""

    def changed(layer: str, change: str, x: Tensor) -> Tensor:
        more = linear(f"step.{change}.1", x @ block.step[change][0].weight.T) if step else 0
        return linear(layer, x) + more

    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (block.table + modulation).unbind(1)
    q, k, v = changed("attention.qkv", "qkv", modulated(x, shift_1, scale_1)).split(WIDTH, -1)
    x = x + gate_1 * linear("attention.out", attended(q, k, v, block.attention, block.axes))
    if block.cross_attention is not None:
        k, v = linear("cross_attention.kv", words).split(WIDTH, -1)
        read = attended(linear("cross_attention.q", x), k, v, block.cross_attention, None)
        x = x + linear("cross_attention.out", read)
    y = changed("mlp.0", "up", modulated(x, shift_2, scale_2))
    y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
    return x + gate_2 * changed("mlp.2", "down", y)


def predicted(
    net: SpaceTimeTransformer, z: Tensor, tau: Tensor, text: Tensor, spare: int, fps: float, rho: Tensor | None
) -> Tensor:
    """Return the prediction for one clip `c t h w`; behind the words of `text` are `spare` places without one."""
    weights, (pt, ph, pw) = dict(net.named_parameters()), PATCH

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def two_layers(name: str, x: Tensor) -> Tensor:
        return linear(f"{name}.2", silu(linear(f"{name}.0", x)))

    patches = [z[:, f * pt :, r * ph :, c * pw :][:, :pt, :ph, :pw] for f, r, c in TOKENS]
    x = torch.stack([linear("embed", patch.permute(1, 2, 3, 0).flatten()) for patch in patches])
    x = x + torch.stack(
        [torch.cat([waves(centre(r, H), WIDTH // 2, 100), waves(centre(c, W), WIDTH // 2, 100)]) for _, r, c in TOKENS]
    )
    level = two_layers("embed_tau", torch.stack([waves(1000 * one, 256, 1e4) for one in tau.view(T, pt).mean(1)]))
    level = level + two_layers("embed_fps", waves(fps, 256, 1e4))
    if rho is not None:
        steps = (tau - rho).view(T, pt).mean(1)
        level = level + two_layers("embed_step", torch.stack([waves(100 * one, 256, 1e4) for one in steps]))
    # Of a frame, for each of its tokens.
    level = level.repeat_interleave(H * W, 0)
    modulation, words = linear("modulate.1", silu(level)).view(-1, 6, WIDTH), two_layers("embed_text", text)
    if net.padding is not None:
        words = torch.cat([words, *[net.padding[None]] * spare])
    for i, block in enumerate(net.blocks):
        own = partial(lambda i, name, x: linear(f"blocks.{i}.{name}", x), i)
        x = through(block, own, x, modulation, words, rho is not None)
    shift, scale = (net.table + level[:, None]).unbind(1)
    made = torch.empty_like(z)
    for (f, r, c), patch in zip(TOKENS, linear("head", modulated(x, shift, scale)), strict=True):
        place = made[:, f * pt :, r * ph :, c * pw :][:, :pt, :ph, :pw]
        place.copy_(patch.view(pt, ph, pw, -1).permute(3, 0, 1, 2))
    return made


@pytest.mark.parametrize("padding", ["masked", "learned"])
@pytest.mark.parametrize("step", [False, True])
@torch.no_grad()
def test_the_network_is_what_its_description_says(step: bool, padding: str) -> None:
    net, generator = network(padding), torch.Generator().manual_seed(1)
    z = torch.randn(2, 2, T * PATCH[0], H * PATCH[1], W * PATCH[2], generator=generator)
    tau, part = torch.rand(2, 2, T * PATCH[0], generator=generator)
    text, fps = torch.randn(2, 5, 6, generator=generator), torch.tensor([24.0, 5.0])
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    assert [block.axes for block in net.blocks] == ["space", "time", "spacetime", "space"]
    assert [block.cross_attention is not None for block in net.blocks] == [True, False, True, False]
    assert (net.blocks[0].mlp[0].out_features, net.blocks[0].step["up"][0].out_features) == (3 * WIDTH, 2)
    found = net(z, tau, text, mask, fps, *([tau * part] if step else []))
    for clip in range(2):
        rho = tau[clip] * part[clip] if step else None
        words, spare = text[clip, mask[clip]], int((~mask[clip]).sum())
        wanted = predicted(net, z[clip], tau[clip], words, spare, float(fps[clip]), rho)
        torch.testing.assert_close(found[clip], wanted, rtol=0, atol=1e-5 * float(wanted.std()))
