"""Tokens and FLOPs of micro-batches, and the share of its devices' peak that a run reaches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from videodiff.planning.flops import Network, forward_and_backward, recomputed


class Work(NamedTuple):
    """One clip in training: its tokens, the FLOPs of the denoiser, and those that recompute repeats."""

    tokens: int
    flops: int
    recomputed: int


class Shapes(NamedTuple):
    """How clips become tokens: `latent_frames` and `compression` are the codec's, `patch` is the model's."""

    latent_frames: Callable[[int], int]
    compression: Sequence[int]
    patch: Sequence[int]

    def tokens(self, size: Sequence[int], pixels: bool) -> tuple[int, int]:
        """Return tokens in time and in space of a clip `t h w`, in pixels or in latents."""
        t, h, w = size
        if pixels:
            t, h, w = self.latent_frames(t), h // self.compression[1], w // self.compression[2]
        pt, ph, pw = self.patch
        return t // pt, (h // ph) * (w // pw)


def work_of(
    size: Sequence[int], pixels: bool, shapes: Shapes, network: Network, level: str = "none", every: int = 1
) -> Work:
    """Return the work of a clip `t h w` in pixels or latents; `level` and `every` are settings of recompute."""
    time, space = shapes.tokens(size, pixels)
    again = recomputed(time, space, network, level, every)
    return Work(time * space, forward_and_backward(time, space, network), again)


class Window(NamedTuple):
    """What all processes did in some seconds: clips, their work, FLOPs of encoders, text tokens, and padding."""

    clips: int = 0
    tokens: int = 0
    flops: int = 0
    recomputed: int = 0
    encoders: int = 0
    words: int = 0
    padding: float = 0.0

    def plus(self, clips: int, work: Work, encoders: int, words: int) -> Window:
        """Return the window with `clips` more; `encoders`: FLOPs of encoders, `words`: text tokens, of all."""
        return self._replace(
            clips=self.clips + clips,
            tokens=self.tokens + clips * work.tokens,
            flops=self.flops + clips * work.flops,
            recomputed=self.recomputed + clips * work.recomputed,
            encoders=self.encoders + encoders,
            words=self.words + words,
        )


def utilisation(window: Window, seconds: float, waited: float, peak: float | None) -> dict[str, float]:
    """Return the figures of a window by name; `waited`: seconds of waiting for data, `peak`: FLOPs a second of all.

    mfu: the denoiser's FLOPs over the peak. FLOPs of recompute and of encoders do not count; they have figures of
    their own.
    """
    done = window.flops + window.recomputed + window.encoders
    found = {
        "train/clips_per_s": window.clips / seconds,
        "train/tokens_per_s": window.tokens / seconds,
        "train/flops_encoders": window.encoders / max(done, 1),
        "train/flops_recompute": window.recomputed / max(done, 1),
        "train/text_padding": window.padding / max(window.words, 1),
        "train/data_wait": min(waited / seconds, 1.0),
    }
    if peak:
        found["train/mfu"] = window.flops / seconds / peak
    return {name: value for name, value in found.items() if math.isfinite(value)}
