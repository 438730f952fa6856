"""Geometry: size, aspect and length; no pixel is read."""

from __future__ import annotations

from videodiff.data.video.info import VideoInfo


def geometry(info: VideoInfo) -> dict[str, float]:
    """Return width, height and short_side in pixels, aspect (width / height), frames, fps, and duration in seconds."""
    return {
        "width": float(info.width),
        "height": float(info.height),
        "short_side": float(min(info.width, info.height)),
        "aspect": info.width / info.height,
        "frames": float(info.frames),
        "fps": info.fps,
        "duration": info.duration,
    }
