"""Interlaced footage: a frame combines two fields from two moments, so everything that moves shows combs.

In a normal picture neighbouring rows are more alike than rows two apart; in a comb it is the reverse.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Successive frames that are examined together: in film at 30 frames a second (telecine) two in five frames are combed.
RUN = 6
# Columns that are sampled, because only rows matter; rows and columns of a block.
COLUMNS, BLOCK = 64, (16, 4)
# A block moves if it changes by MOVES levels between frames. In a comb neighbouring rows differ by LEVELS levels, and
# RATIO times as much as rows two apart.
MOVES, LEVELS, RATIO = 3.0, 4.0, 1.25
# Footage is interlaced if this share of the moving blocks is combed.
COMBED = 0.05
# With fewer moving blocks the share is reduced: fields do not show in a still picture.
FEWEST = 4


class Combs:
    """Counts the combs of a clip, frame by frame."""

    def __init__(self) -> None:
        self.left, self.before = 0, None
        self.run = self.total = (0, 0)
        self.top_first = 0

    def begin(self) -> None:
        """Examine the next few frames."""
        self.total, self.run = self.all(), (0, 0)
        self.left, self.before = RUN, None

    def add(self, frame: av.VideoFrame, reformatter: VideoReformatter) -> None:
        """Add the next frame."""
        if not self.left:
            return
        self.left -= 1
        rows, before = luma(frame, reformatter), self.before
        self.before = rows
        if before is None or before.shape != rows.shape or min(rows.shape) < max(BLOCK) + 2:
            return
        found = combs(rows, before)
        # The worst frame of a run counts, because in telecined film only some frames are combed.
        self.run = max(self.run, found)
        if found[0]:
            self.top_first += int(woven(rows, before) <= woven(before, rows)) * 2 - 1

    def all(self) -> tuple[int, int]:
        """Return how many blocks are combed, and how many move."""
        return self.total[0] + self.run[0], self.total[1] + self.run[1]

    def share(self) -> float:
        """Return the share of moving blocks that are combed, 0 to 1."""
        combed, moving = self.all()
        return combed / max(moving, FEWEST)


def luma(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Return some columns of the luma of a coded frame: int16 `h w`."""
    kind = frame.format
    if kind.is_planar and not kind.is_rgb and kind.components[0].bits == 8:
        plane = frame.planes[0]
        grey = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    else:
        grey = reformatter.reformat(frame, format="gray", threads=1).to_ndarray()
    return grey[:, :: max(1, grey.shape[1] // COLUMNS)].astype(np.int16)


def combs(rows: np.ndarray, before: np.ndarray) -> tuple[int, int]:
    """Return how many blocks of a frame are combed, and how many move; int16 `h w`, and the frame before it."""
    moves = blocks(np.abs(rows - before)[1:-1]) > MOVES
    near, far = blocks(np.abs(rows[1:] - rows[:-1])[:-1]), blocks(np.abs(rows[2:] - rows[:-2]))
    combed = moves & (near > LEVELS) & (near > RATIO * far)
    return int(combed.sum()), int(moves.sum())


def blocks(values: np.ndarray) -> np.ndarray:
    """Return the mean of each whole block."""
    down, across = (side // block for side, block in zip(values.shape, BLOCK, strict=True))
    whole = values[: down * BLOCK[0], : across * BLOCK[1]]
    return whole.reshape(down, BLOCK[0], across, BLOCK[1]).mean((1, 3))


def woven(top: np.ndarray, bottom: np.ndarray) -> float:
    """Return how much neighbouring rows differ when the upper field of one frame meets the lower field of another.

    Successive fields differ less. If the upper field comes first, these are the lower field of a frame and the upper
    field of the next frame.
    """
    even, odd = top[0::2], bottom[1::2]
    return float(np.abs(even[: len(odd)] - odd).mean())
