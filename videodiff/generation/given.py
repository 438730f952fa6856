"""Read the given parts of a clip from files: a video, pictures, and a mask of the pixels to make anew."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videodiff.data.storage.files import no_file
from videodiff.data.video.decode import DecodeError, decode, decode_into, probe, resize
from videodiff.generation.known import find_known
from videodiff.words import count_text


class Footage(NamedTuple):
    """A given video or picture: uint8 `h w c` where it is a picture, which has no rate."""

    name: str
    data: bytes
    frames: int
    height: int
    width: int
    fps: float | None = None
    picture: np.ndarray | None = None

    def at(self, numbers: Sequence[int], height: int, width: int) -> np.ndarray:
        """Return the frames at these indices in this size, uint8 `k h w c`; a picture has one frame, at every index.

        No more than one frame is in memory in the size of the file, which may be a hundred times as large.
        """
        frames = np.empty((len(numbers), height, width, 3), np.uint8)
        if self.picture is not None:
            frames[:] = resize(self.picture[None], height, width)
        else:
            decode_into(frames, self.data, numbers)
        return frames

    def facts(self) -> dict[str, str]:
        """Return the facts that identify this file."""
        return {"path": self.name, "sha256": hashlib.sha256(self.data).hexdigest()}


def read_footage(key: str, name: str) -> Footage:
    """Read a given file; `key` is the setting that names it."""
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{key}: found {no_file(path)}, expected a video or a picture")
    try:
        data = path.read_bytes()
        info = probe(data)
        picture = decode(data, [0])[0] if info.frames == 1 else None
    except (DecodeError, OSError) as error:
        raise ValueError(f"{key}: {path}: found no readable video or picture ({error}), expected one") from error
    fps = info.fps if picture is None else None
    return Footage(name, data, info.frames, info.height, info.width, fps, picture)


def frames_at(footage: Footage, numbers: Sequence[int], fps: float, start: float, key: str = "given") -> list[int]:
    """Return the frames of a video that a clip shows at these indices; it runs at `fps` and begins at `start` seconds.

    A negative start counts from the end: -1 begins one second before the end. `key` is the setting that names the file.
    """
    if footage.fps is None:
        return [0] * len(numbers)
    seconds = footage.frames / footage.fps
    if not -seconds <= start < seconds:
        raise ValueError(
            f"start: found {start:g}, expected -{seconds:g} to {seconds:g}: {footage.name} has so many seconds"
        )
    first = start + seconds if start < 0 else start
    # Halfway between two frames counts from the later one, always: `round` would take every other one twice. The
    # millionth of a frame forgives the rounding of times.
    found = [math.floor((first + number / fps) * footage.fps + 0.500001) for number in numbers]
    if len(set(found)) < len(found):
        raise ValueError(
            f"{key}: {footage.name} has {footage.fps:g} frames a second, expected at least {fps:g}, the rate of this "
            f"clip (fps={footage.fps:g} samples at the rate of the video)"
        )
    if found[-1] >= footage.frames:
        raise ValueError(
            f"{key}: {footage.name} has {count_text(footage.frames, 'frame')}, expected at least {found[-1] + 1} for "
            f"the frames {shown(numbers)} of the clip at {fps:g} a second from {first:g} s"
        )
    return found


def read_known(
    given: Sequence[Footage], known: Sequence[int], codec: Any, shape: tuple[int, int, int], fps: float, start: float
) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the indices of the known frames of a clip, and these frames in its size.

    One video gives its frames at their times. Several files, or a picture, give one frame each, in order: a video the
    one at `start`.
    """
    numbers = find_known(known, codec, shape[0])
    if len(given) == 1 and given[0].fps is not None:
        return numbers, given[0].at(frames_at(given[0], numbers, fps, start), *shape[1:])
    if len(numbers) < len(known):
        raise ValueError(f"known: found {list(known)} for pictures, expected each frame once: a picture belongs to it")
    if len(given) != len(numbers):
        raise ValueError(
            f"given: found {count_text(len(given), 'file')} for known={list(known)}, expected one video, or a picture "
            f"for each of the {len(numbers)} known frames"
        )
    # Keep the order of the setting: known=[-1,0] names the last frame first.
    order = np.argsort([number % shape[0] for number in known], kind="stable")
    files = [given[place] for place in order]
    return numbers, np.concatenate([one.at(frames_at(one, [0], fps, start), *shape[1:]) for one in files])


def read_whole(footage: Footage, shape: tuple[int, int, int], fps: float, start: float) -> np.ndarray:
    """Return all frames of a clip from a given video, in its size; a picture is repeated."""
    return footage.at(frames_at(footage, range(shape[0]), fps, start), *shape[1:])


def read_mask(name: str, shape: tuple[int, int, int], fps: float, start: float) -> np.ndarray:
    """Return the pixels (t, h, w) of a clip to make: where the mask, a picture or a video, is not black.

    A video runs beside the given one: its frames are taken at the same times.
    """
    footage = read_footage("mask", name)
    frames = footage.at(frames_at(footage, range(shape[0]), fps, start, "mask"), *shape[1:]).max(axis=-1)
    # The edges of a scaled or coded mask are grey.
    new = frames > 127
    if not new.any():
        raise ValueError(f"mask: {name}: found black everywhere, expected white where the clip is to be made anew")
    if new.all():
        raise ValueError(
            f"mask: {name}: found white everywhere, as transparent parts are, expected black where the given pixels "
            "stay"
        )
    return new


def remarks(given: Sequence[Footage], shape: tuple[int, int, int]) -> list[str]:
    """Return a line for each given file of another size than the clip."""
    return [
        f"given: {one.name} has {one.height} x {one.width} pixels, scaled and cut to {shape[1]} x {shape[2]}"
        for one in given
        if (one.height, one.width) != tuple(shape[1:])
    ]


def shown(numbers: Sequence[int]) -> str:
    """Return some indices for a message."""
    return str(list(numbers)) if len(numbers) <= 8 else f"0 to {numbers[-1]}"
