"""How a long clip changes, second by second: number, colours, size and motion of the balls of a world, and sharpness.

Frames come one by one and are not kept, so a longer clip needs no more memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from videodiff.metrics.worlds.captions import Phrase, phrases
from videodiff.metrics.worlds.lawful import measure_flight
from videodiff.metrics.worlds.parsing import track
from videodiff.worlds.bouncing import LAW
from videodiff.worlds.scene import PALETTE

NAMES = (
    *("count_accuracy", "colour_accuracy", "motion_accuracy", "law_error"),
    *("size_ratio", "sharpness_ratio", "motion_ratio", "brightness_change"),
)
RATIOS = ("size", "sharpness", "motion")
# Frames of the second before that the flight of a second begins with, so that a turn between two seconds is seen.
BEFORE = 2


class Drift:
    """Measures frames as they pass; the caption of a world says which balls they should show.

    `later`: captions that replace the first one, each with the frame from which on it holds.

    count_accuracy: share of frames with the right number of balls. colour_accuracy: share of frames in which all balls
    have the colours of the caption. motion_accuracy: share of seconds in which the balls obey the law of the bouncing
    world at the speed of the caption; law_error: their distance from such a flight; see `worlds/lawful.py`.
    size_ratio, sharpness_ratio, motion_ratio: the mean in a second over the mean in the first second; motion is the
    mean difference from the frame before. brightness_change: in grey levels.
    """

    def __init__(self, caption: str, fps: float, later: Sequence[tuple[int, str]] = ()) -> None:
        self.fps, self.later = fps, dict(later)
        self.follow(caption)
        self.second: list[dict[str, float]] = []
        self.seconds: list[dict[str, float]] = []
        self.number = 0
        self.before: np.ndarray | None = None

    def follow(self, caption: str) -> None:
        """Expect the balls of a caption from now on."""
        words = re.findall(r"[a-z]+", caption.lower())
        self.colours = sorted(word for word in words if word in PALETTE)
        self.balls = sum(word in ("ball", "balls") for word in words)
        self.asked = asked_of(caption)
        self.positions: list[np.ndarray] = []
        self.radii: list[np.ndarray] = []

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the frames `h w c` as they come."""
        for frame in frames:
            if int(self.number / self.fps) > len(self.seconds):
                self.end_second()
            if self.number in self.later:
                self.follow(self.later[self.number])
            self.second.append(self.measure(frame))
            self.number += 1
            yield frame

    def measure(self, frame: np.ndarray) -> dict[str, float]:
        """Return the figures of one frame."""
        grey = frame.astype(np.float32).mean(axis=-1)
        found = {"sharpness": sharpness(grey), "brightness": float(grey.mean())}
        found["motion"] = 0.0 if self.before is None else float(np.abs(grey - self.before).mean())
        self.before = grey
        if self.balls and frame.shape[0] == frame.shape[1]:
            seen = track(frame[None])
            there = [name for name, visible in zip(seen.colours, seen.visible[0], strict=True) if visible]
            found["count_accuracy"] = float(seen.count()[0] == self.balls)
            found["colour_accuracy"] = float(there == [name for name in seen.colours if name in self.colours])
            found["size"] = float(seen.area[0][seen.visible[0]].mean()) if there else 0.0
            if self.asked:
                balls = seen.of([phrase.colour for phrase in self.asked])
                self.positions.append(balls.position[0])
                self.radii.append(balls.radius()[0])
        return found

    def end_second(self) -> None:
        """Take the means of a second, and the flight through it."""
        names = dict.fromkeys(name for one in self.second for name in one)
        means = {name: mean([one[name] for one in self.second if name in one]) for name in names}
        if len(self.positions) > BEFORE:
            radius = np.mean(self.radii, axis=0)
            means |= measure_flight(np.stack(self.positions), radius, self.asked, self.fps, LAW)
            del self.positions[:-BEFORE], self.radii[:-BEFORE]
        self.seconds.append(means)
        self.second = []

    def result(self) -> dict[str, Any]:
        """Return the figures of the whole clip and of each second."""
        if self.second:
            self.end_second()
        first, rows = self.seconds[0], []
        for one in self.seconds:
            row = {name: one[name] for name in NAMES if name in one}
            row |= {f"{name}_ratio": ratio(one[name], first[name]) for name in RATIOS if name in first}
            rows.append(row | {"brightness_change": one["brightness"] - first["brightness"]})
        whole = {
            name: mean([row[name] for row in rows if name in row]) for name in NAMES if any(name in row for row in rows)
        }
        last = {f"last_{name}": rows[-1][name] for name in NAMES if name in rows[-1]}
        return {"frames": self.number, "seconds": self.number / self.fps, **whole, **last, "by_second": rows}


def asked_of(caption: str) -> list[Phrase]:
    """Return the balls that a caption of the bouncing world asks for, none for any other caption."""
    try:
        return phrases(caption.lower(), LAW.grammar)
    except ValueError:
        return []


def sharpness(grey: np.ndarray) -> float:
    """Return the mean of the absolute Laplacian of an image `h w`, in grey levels."""
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.abs(4 * inner - around).mean()) if inner.size else 0.0


def mean(values: list[float]) -> float:
    """Return the mean."""
    return float(np.mean(values))


def ratio(value: float, first: float) -> float:
    """Return a value over the first one; 1 where both are 0."""
    return value / first if first else float(value == first)
