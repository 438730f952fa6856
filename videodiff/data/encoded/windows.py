"""Which frames of a clip are encoded into latents, and which latents make the window that training asks for.

A codec that works frame by frame encodes every `stride`-th frame, and any window can be cut from the latents. A causal
video codec makes one latent of the first frame of what it is given and one of every ft frames after it, from all frames
up to these: latents cut from the middle of a longer clip would not be those of the window. So its clips are encoded
window by window, spread such that every frame is in one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from videodiff.data.order.arithmetic import draw
from videodiff.data.order.buckets import Bucket

# Frames that are decoded and encoded at once where each stands for itself.
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
            raise ValueError(f"found stride={self.stride} frames={self.frames}, expected at least 1 of both")

    @classmethod
    def of(cls, codec: Any, stride: int, frames: int | None) -> Windows:
        """Return the windows of a codec; `frames` is needed where it compresses time, and only there."""
        if not codec.causal and frames is not None:
            raise ValueError(f"frames: found {frames}, expected null: of a codec by frames any window can be cut")
        if codec.causal and frames is None:
            raise ValueError(
                f"frames: found null, expected 1 + {codec.compression[0]} k for the codec {codec.name}, as training "
                f"will ask for by data.frames"
            )
        return cls(stride, frames, 1 if frames is None else codec.latent_frames(frames))

    def starts(self, frames: int) -> list[int]:
        """Return the first frame of each window of a clip of so many frames, none where it is too short."""
        shown = len(range(0, frames, self.stride))
        spare, count = shown - self.frames, -(-shown // self.frames)
        return [] if spare < 0 else [spare * i // max(count - 1, 1) * self.stride for i in range(count)]

    def parts(self, frames: int) -> list[range]:
        """Return the frames that are encoded together, in the order of their latents."""
        if self.frames is None:
            return [
                range(start, min(start + PIECE * self.stride, frames), self.stride)
                for start in range(0, frames, PIECE * self.stride)
            ]
        return [range(start, start + self.frames * self.stride, self.stride) for start in self.starts(frames)]

    def check(self, bucket: Bucket) -> None:
        """Raise where training asks for windows that cannot be cut from these latents."""
        if any(stride % self.stride for stride in bucket.strides):
            raise ValueError(
                f"stride: found {list(bucket.strides)} for {bucket}, expected multiples of {self.stride}: the cached "
                f"latents are of every frame in {self.stride}"
            )
        if self.frames is not None and (bucket.frames, bucket.strides) != (self.frames, (self.stride,)):
            raise ValueError(
                f"frames, stride: found {bucket.frames}, {list(bucket.strides)} for {bucket}, expected {self.frames}, "
                f"[{self.stride}] as in the cached latents: their codec compresses time"
            )

    def draw(self, bucket: Bucket, frames: int, *key: int) -> range:
        """Return the frames to take of a clip, drawn by the key; with stride 1 and no `frames` as `Bucket.window`."""
        if self.frames is not None:
            starts = self.starts(frames)
            start = starts[draw(len(starts), *key, 0)]
            return range(start, start + (self.frames - 1) * self.stride + 1, self.stride)
        steps = replace(bucket, strides=tuple(stride // self.stride for stride in bucket.strides))
        window = steps.window(len(range(0, frames, self.stride)), *key)
        return range(window.start * self.stride, window[-1] * self.stride + 1, window.step * self.stride)

    def cut(self, latents: torch.Tensor, window: range, frames: int) -> torch.Tensor:
        """Return the latents `c t h w` of a window that `draw` gave for a clip of so many frames."""
        if self.frames is None:
            return latents[:, window.start // self.stride : window[-1] // self.stride + 1 : window.step // self.stride]
        first = self.starts(frames).index(window.start) * self.latents
        return latents[:, first : first + self.latents]
