"""Measure the decoders that `data.decoder` may name: windows of frames of canonical clips, one thread, one process.

python bench/decoders.py [clips [rounds]]

For groups of 12 pictures, as our clips have them, and of 250, as x264 makes them, and for every, every second and every
fourth frame: processor milliseconds a window of 16 frames, medians over rounds. `bare decord` is its reader without the
look at the headers by which ours refuses what it would misread. All must give the same frames.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from subjects.loader import FRAMES, LENGTH, plain_decode, scene

from videodiff.data.order.arithmetic import draw
from videodiff.data.video import encode as encoding
from videodiff.data.video.decode import decode
from videodiff.data.video.decoders import DECODERS

READERS = {"bare decord": plain_decode} | {name: partial(decode, find=find) for name, find in DECODERS.items()}


def window(number: int, turn: int, stride: int) -> range:
    """Return the frames to take of a clip the n-th time."""
    length = (FRAMES - 1) * stride + 1
    start = draw(LENGTH - length + 1, number, turn)
    return range(start, start + length, stride)


def milliseconds(read: Callable[[bytes, range], np.ndarray], videos: list[bytes], stride: int, turn: int) -> float:
    start = time.process_time()
    for number, video in enumerate(videos):
        read(video, window(number, turn, stride))
    return 1000 * (time.process_time() - start) / len(videos)


def main(clips: int = 16, rounds: int = 7) -> None:
    """Print a line for each kind of clip and window."""
    torch.set_num_threads(1)
    readers = list(READERS.values())
    for encoding.GOP in (12, 250):
        videos = [encoding.encode(scene(number), 24.0) for number in range(clips)]
        for stride in (1, 2, 4):
            for number, video in enumerate(videos):
                numbers = window(number, 0, stride)
                assert all(np.array_equal(read(video, numbers), plain_decode(video, numbers)) for read in readers)
            took = np.array([[milliseconds(read, videos, stride, turn) for read in readers] for turn in range(rounds)])
            line = [f"{name} {ms:.1f} ms" for name, ms in zip(READERS, np.median(took, axis=0), strict=True)]
            ratio = np.median(took[:, 0] / took[:, 1])
            kind = f"groups of {encoding.GOP}, every {stride}"
            print(f"{kind}: {', '.join(line)}; bare decord / pyav {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
