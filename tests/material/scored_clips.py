"""Footage that a filter must reject or keep, drawn without a file: uint8 `t h w c`."""

from __future__ import annotations

import cv2
import numpy as np


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a picture with things of every size and sharp edges, like a natural one: uint8 `h w c`."""
    rng = np.random.default_rng(seed)
    ground = rng.uniform(60, 200, (3, 4, 3)).astype(np.float32)
    picture = cv2.resize(ground, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    for size in np.geomspace(height / 3, 3, 1500):
        where, axes = rng.uniform(0, (width, height)), rng.uniform(size / 3, size, 2)
        colour = (picture[int(where[1]), int(where[0])] + rng.normal(0, 45, 3)).clip(20, 235).tolist()
        cv2.ellipse(picture, (tuple(where), tuple(axes), rng.uniform(0, 180)), colour, cv2.FILLED, cv2.LINE_AA)
    return picture


def panning(
    frames: int = 10, height: int = 256, width: int = 456, speed: float = 12.0, shake: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Move a window over a picture: `speed` pixels a frame to the right, and up to `shake` anywhere."""
    margin = int(abs(speed) * frames + shake) + 2
    picture = texture(height + 2 * margin, width + 2 * margin, seed)
    jumps = np.random.default_rng(seed).uniform(-shake, shake, (frames, 2))
    tops = (margin + jumps[:, 0]).round().astype(int)
    lefts = (margin + speed * (np.arange(frames) - frames / 2) + jumps[:, 1]).round().astype(int)
    return np.stack([picture[t : t + height, l : l + width] for t, l in zip(tops, lefts, strict=True)])


def still(frames: int = 10, **how) -> np.ndarray:
    """Return one frame held, with the noise that a camera and an encoder add."""
    video = np.repeat(panning(1, **how), frames, axis=0).astype(np.int16)
    return (video + np.random.default_rng(0).integers(-2, 3, video.shape)).clip(0, 255).astype(np.uint8)


def with_bars(video: np.ndarray, top: int = 0, left: int = 0) -> np.ndarray:
    """Blacken `top` rows and `left` columns at both ends, with the noise of an encoder."""
    video = video.copy()
    noise = np.random.default_rng(0).integers(0, 6, video.shape, dtype=np.uint8)
    for part in (
        np.s_[:, :top],
        np.s_[:, video.shape[1] - top :],
        np.s_[:, :, :left],
        np.s_[:, :, video.shape[2] - left :],
    ):
        video[part] = noise[part]
    return video


def with_text(video: np.ndarray, words: str, strength: float = 1.0) -> np.ndarray:
    """Draw white words with a dark rim at the foot of every frame, as opaque as `strength`."""
    video = video.copy()
    where = (video.shape[2] // 8, video.shape[1] - 24)
    for frame in video:
        drawn = cv2.putText(frame.copy(), words, where, cv2.FONT_HERSHEY_SIMPLEX, 0.9, (10, 10, 10), 4, cv2.LINE_AA)
        drawn = cv2.putText(drawn, words, where, cv2.FONT_HERSHEY_SIMPLEX, 0.9, (245, 245, 245), 2, cv2.LINE_AA)
        frame[:] = (strength * drawn + (1 - strength) * frame).astype(np.uint8)
    return video
