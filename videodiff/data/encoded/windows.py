"""Windows: which frames of a clip are encoded together, and which latents belong to a window of training.

A codec that works frame by frame encodes every `stride`-th frame, and any window can be cut from the latents. A causal
video codec makes one latent from the first frame of its input and one from each ft frames after it, and each latent
depends on all frames before it. Latents cut from the middle of a longer clip would differ from the latents of the
window. Therefore such a codec encodes a clip window by window; the windows are spread so that they cover every frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from videodiff.data.order.arithmetic import draw
from videodiff.data.order.buckets import Bucket

# Frames per batch for a codec that works frame by frame.
PIECE = 64


@dataclass(frozen=True)
class Windows:
    """Every `stride`-th frame of a clip; `frames` of them make a window of `latents` latent frames.

    frames None: each frame has its own latent.
    """

    stride: int = 1
    frames: int | None = None
    latents: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1 or (self.frames is not None and self.frames < 1):
            raise ValueError(f"found stride={self.stride} frames={self.frames}, expected at least 1 for both")

    @classmethod
    def of(cls, codec: Any, stride: int, frames: int | None) -> Windows:
        """Return the windows of a codec; `frames` must be given if the codec compresses time, and only then."""
        if not codec.causal and frames is not None:
            raise ValueError(f"frames: found {frames}, expected null, as this codec encodes frame by frame")
        if codec.causal and frames is None:
            raise ValueError(
                f"frames: found null, expected 1 + {codec.compression[0]} k for the codec {codec.name}: the value of "
                f"data.frames in training"
            )
        return cls(stride, frames, 1 if frames is None else codec.latent_frames(frames))

    def starts(self, frames: int) -> list[int]:
        """Return the first frame of each window in a clip of `frames` frames; empty if the clip is too short."""
        shown = len(range(0, frames, self.stride))
        spare, count = shown - self.frames, -(-shown // self.frames)
        return [] if spare < 0 else [spare * i // max(count - 1, 1) * self.stride for i in range(count)]

    def parts(self, frames: int) -> list[range]:
        """Return the ranges of frames that are encoded together, in the order of their latents."""
        if self.frames is None:
            return [
                range(start, min(start + PIECE * self.stride, frames), self.stride)
                for start in range(0, frames, PIECE * self.stride)
            ]
        return [range(start, start + self.frames * self.stride, self.stride) for start in self.starts(frames)]

    def check(self, bucket: Bucket) -> None:
        """Raise if the windows of a bucket cannot be cut from these latents."""
        if any(stride % self.stride for stride in bucket.strides):
            raise ValueError(
                f"stride: found {list(bucket.strides)} for {bucket}, expected multiples of {self.stride}, the stride "
                f"of the cached latents"
            )
        if self.frames is not None and (bucket.frames, bucket.strides) != (self.frames, (self.stride,)):
            raise ValueError(
                f"frames, stride: found {bucket.frames}, {list(bucket.strides)} for {bucket}, expected {self.frames}, "
                f"[{self.stride}] as in the cached latents: their codec compresses time"
            )

    def draw(self, bucket: Bucket, frames: int, *key: int) -> range:
        """Draw a window of a clip by the key; with stride 1 and without `frames` it equals `Bucket.window`."""
        if self.frames is not None:
            starts = self.starts(frames)
            start = starts[draw(len(starts), *key, 0)]
            return range(start, start + (self.frames - 1) * self.stride + 1, self.stride)
        steps = replace(bucket, strides=tuple(stride // self.stride for stride in bucket.strides))
        window = steps.window(len(range(0, frames, self.stride)), *key)
        return range(window.start * self.stride, window[-1] * self.stride + 1, window.step * self.stride)

    def cut(self, latents: torch.Tensor, window: range, frames: int) -> torch.Tensor:
        """Return the latents `c t h w` of a window from `draw`, for a clip of `frames` frames."""
        if self.frames is None:
            return latents[:, window.start // self.stride : window[-1] // self.stride + 1 : window.step // self.stride]
        first = self.starts(frames).index(window.start) * self.latents
        return latents[:, first : first + self.latents]
