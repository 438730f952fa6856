"""The denoiser: a factorized space-time transformer over patches (Latte variant 1, arXiv 2401.03048; ST-DiT-3).

Each frame carries its own noise level, so the same network serves text-to-video (all frames noisy), image-to-video
(the first frame clean), continuation, interpolation and rollout: nothing here knows which. One frame is a video.
The file imports torch and einops only; sharding, recompute and compilation walk `blocks` from outside. `forward`
consists of a few named steps, so that sequence parallelism can run the same steps on a part of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from videodiff.denoiser.block import Block
from videodiff.denoiser.modulation import Norm, weighted
from videodiff.denoiser.patch import patchify, unpatchify
from videodiff.denoiser.position import (
    frame_coordinates,
    patch_coordinates,
    rotary_table,
    sinusoid,
    space_sinusoid,
)

PADDING = ("masked", "learned")


class Conditions(NamedTuple):
    """The inputs of all blocks beside the tokens: `b t 6 d`, `b l d`, `b l`, and a table for each kind of block.

    Without a `text_mask` all places of the text are visible.
    """

    modulation: Tensor
    text: Tensor
    text_mask: Tensor | None
    rotary: dict[str, Tensor]


class SpaceTimeTransformer(nn.Module):
    """Predict from a noised clip, the noise level of each frame and a caption; the objective decides what is predicted.

    `axes` is repeated over `depth` blocks, and so is `captioned`, which says whether a block looks at the caption:
    (True, False) is every second one, as in Latte. `patch` is (pt, ph, pw); `text_width` is the width of the text
    features. With a `step_rank` the network may be told to which level each frame is to go (`diffusion/flow_map.py`).
    On such a step its blocks take changes of this rank; as built, it gives what the network without gives. A call that
    is told of no step never meets the weights for steps.

    `padding` says what stands in the places of a caption behind its last word. "masked": nothing. "learned": a vector
    that learns, which all tokens see, so attention to the text needs no mask; with a mask CUDA's flash kernel is off.
    """

    def __init__(
        self,
        channels: int = 3,
        patch: Sequence[int] = (1, 4, 4),
        width: int = 64,
        depth: int = 6,
        heads: int = 4,
        axes: Sequence[str] = ("space", "time"),
        text_width: int = 64,
        mlp_ratio: float = 4.0,
        gate: float = 0.0,
        captioned: Sequence[bool] = (True,),
        step_rank: int = 0,
        padding: str = "masked",
    ) -> None:
        super().__init__()
        unit = math.lcm(4, 2 * heads)
        if width % unit:
            raise ValueError(f"model.width: found {width}, expected a multiple of {unit} for {heads} heads")
        if not any(captioned[:depth]):
            raise ValueError(
                f"model.captioned: found {list(captioned)}, expected true for at least one of {depth} blocks"
            )
        if padding not in PADDING:
            raise ValueError(f"model.padding: found {padding!r}, expected one of {', '.join(PADDING)}")
        self.patch, self.width, self.heads = tuple(patch), width, heads
        pixels = channels * self.patch[0] * self.patch[1] * self.patch[2]
        self.embed = nn.Linear(pixels, width)
        self.embed_tau = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_fps = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        # No part of it where it is not asked for: checkpoints keep their names.
        self.embed_step = step_embedding(width) if step_rank else None
        self.embed_text = nn.Sequential(nn.Linear(text_width, width), nn.SiLU(), nn.Linear(width, width))
        self.padding = nn.Parameter(torch.zeros(width)) if padding == "learned" else None
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(
            Block(width, heads, axes[i % len(axes)], mlp_ratio, gate, captioned[i % len(captioned)], step_rank)
            for i in range(depth)
        )
        self.norm = Norm(width)
        self.table = nn.Parameter(torch.zeros(2, width))
        self.head = nn.Linear(width, pixels)
        # A new network predicts zeros, opens no gate further than `gate`, and does not look at the frame rate.
        for layer in (self.modulate[-1], self.head, self.embed_fps[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, z: Tensor, tau: Tensor, text: Tensor, text_mask: Tensor, fps: Tensor, rho: Tensor | None = None
    ) -> Tensor:
        """Return the prediction, float32, with the shape of `z`.

        z: noised clip `b c t h w`; tau: noise level of each frame `b t`, 0 clean to 1 noise; text: `b l text_width`
        with text_mask `b l`, True where there is a word; fps: frames per second, `b`, 0 where unknown; rho: the level
        that each frame is to go to, `b t`, at most tau; None: no step, the velocity where the frames are.
        """
        pt, ph, pw = self.patch
        t, h, w = z.shape[2] // pt, z.shape[3] // ph, z.shape[4] // pw
        x, level = self.tokens(z), self.level(tau, fps, rho)
        known = self.conditions(level, text, text_mask, self.rotary(t, h, w, z.device))
        for block in self.blocks:
            x = block(x, known.modulation, known.text, known.text_mask, known.rotary[block.axes], rho is not None)
        return self.clip(self.predict(x, level), h)

    def widest(self, t: int, h: int, w: int) -> int:
        """Return how many values the widest layer makes for a clip of `t h w`, which the patch divides."""
        return t * h * w // math.prod(self.patch) * max(3 * self.width, self.blocks[0].mlp[0].out_features)

    def tokens(self, z: Tensor) -> Tensor:
        """Return the tokens `b t s d` of a clip, or of some of its frames."""
        place = patch_coordinates(z.shape[3] // self.patch[1], z.shape[4] // self.patch[2], z.device)
        dtype = self.table.dtype
        return self.embed(patchify(z, self.patch).to(dtype)) + space_sinusoid(place, self.width).to(dtype)

    def level(self, tau: Tensor, fps: Tensor, rho: Tensor | None = None) -> Tensor:
        """Return what every token of a frame is told of its noise, its rate and its step, `b t d`."""
        dtype = self.table.dtype
        level = self.embed_tau(sinusoid(1000 * self.by_patch(tau), 256).to(dtype))
        level = level + self.embed_fps(sinusoid(fps, 256).to(dtype))[:, None]
        if rho is None:
            return level
        if self.embed_step is None:
            raise ValueError("model.step_rank: found 0, expected a rank: the network was told a level to go to")
        # A tenth of the frequencies of tau: few lengths of steps are learned, those between them have to follow.
        return level + self.embed_step(sinusoid(100 * self.by_patch(tau - rho), 256).to(dtype))

    def by_patch(self, level: Tensor) -> Tensor:
        """Return the mean level of the frames of each patch: `b t` to `b t/pt`."""
        return level.unflatten(1, (-1, self.patch[0])).mean(-1)

    def conditions(self, level: Tensor, text: Tensor, text_mask: Tensor, rotary: dict[str, Tensor]) -> Conditions:
        """Return the inputs of all blocks beside the tokens."""
        modulation = self.modulate(level).unflatten(-1, (6, self.width))
        text, seen = self.embed_text(text.to(self.table.dtype)), text_mask
        if self.padding is not None:
            text, seen = torch.where(text_mask[..., None], text, self.padding.to(text.dtype)), None
        return Conditions(modulation, text, seen, rotary)

    def predict(self, x: Tensor, level: Tensor) -> Tensor:
        """Map the tokens after the last block to patches `b t s p`; `level` belongs to the same frames."""
        shift, scale = (self.table + level[:, :, None])[:, :, :, None].unbind(2)
        return self.head(weighted(shift, self.norm(x), 1 + scale))

    def clip(self, patches: Tensor, h: int) -> Tensor:
        """Return patches `b t s p` as a clip, float32; `h` is the number of patch rows."""
        return unpatchify(patches, self.patch, h).float()

    def rotary(self, t: int, h: int, w: int, device: torch.device) -> dict[str, Tensor]:
        """Return the rotary table of each kind of block for a clip of `t` x `h` x `w` patches."""
        time, place = frame_coordinates(t, device)[:, None], patch_coordinates(h, w, device)
        both = torch.cat([time.repeat_interleave(len(place), 0), place.repeat(t, 1)], dim=-1)
        coordinates, used = {"space": place, "time": time, "spacetime": both}, {block.axes for block in self.blocks}
        return {axes: rotary_table(coordinates[axes], self.width // self.heads) for axes in used}


def step_embedding(width: int) -> nn.Sequential:
    """Return the embedding of the step from one level to another; as built, it adds nothing."""
    layers = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return layers
