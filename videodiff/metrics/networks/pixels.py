"""Turn frames into the pixels that a network expects; the picture is never squeezed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Mean and deviation of ImageNet in [0, 1]: what VideoMAE, V-JEPA and DINO were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def check_square(frames: np.ndarray) -> None:
    """Raise if a resize to a square would squeeze the picture."""
    height, width = frames.shape[1:3]
    if height != width:
        raise ValueError(
            f"found frames of {height} x {width}, expected square ones: the network takes a square, and a resize would "
            f"squeeze the picture; crop=true takes the middle"
        )


def middle(frames: np.ndarray) -> np.ndarray:
    """Return the middle square of frames `t h w c`."""
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[:, top : top + side, left : left + side]


def squares(frames: np.ndarray, crop: bool) -> np.ndarray:
    """Return square frames: as they are, their middle with `crop`, else a ValueError."""
    if crop:
        return middle(frames)
    check_square(frames)
    return frames


def resized(frames: np.ndarray, side: int, mode: str = "bilinear") -> Tensor:
    """Return square frames uint8 `t h w c` as float32 `t c side side` in [0, 1].

    Shrinking filters the picture before it samples it, because fine structure would alias (arXiv 2104.11222).
    """
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    if pixels.shape[-1] == side:
        return pixels
    return F.interpolate(pixels, (side, side), mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def normalised(pixels: Tensor, mean: Sequence[float] = MEAN, deviation: Sequence[float] = DEVIATION) -> Tensor:
    """Return pixels `... c h w` in [0, 1] with mean 0 and deviation 1 over the pictures of the network's training."""
    shape = (len(mean), 1, 1)
    return (pixels - torch.tensor(mean).view(shape)) / torch.tensor(deviation).view(shape)


def batches(clips: Sequence[np.ndarray], size: int) -> Iterator[Sequence[np.ndarray]]:
    """Yield the clips in groups of `size`."""
    for start in range(0, len(clips), size):
        yield clips[start : start + size]
