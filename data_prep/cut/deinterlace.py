"""Deinterlace: make one progressive picture of each interlaced frame, with the filter bwdif of libavfilter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import av
from av.filter import Graph

from data_prep.cut.encode import chain
from data_prep.cut.spans import Shown


class Deinterlacer:
    """Takes frames and yields each with its deinterlaced picture, one frame late: the filter looks one frame ahead.

    top_first: whether the top field was taken first. A picture shows the moment of the first field of its frame.
    """

    def __init__(self, top_first: bool) -> None:
        self.filter = "bwdif", f"mode=send_frame:parity={'tff' if top_first else 'bff'}:deint=all"
        self.waiting: deque[Shown] = deque()
        self.kind, self.graph = None, Graph()

    def __call__(self, shown: Shown) -> Iterator[tuple[Shown, av.VideoFrame]]:
        """Take a frame; yield the frames that are done, each with its picture."""
        frame = shown.frame
        kind = frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range
        if kind != self.kind:
            yield from self.rest()
            self.kind, self.graph = kind, chain(frame, [self.filter])
        self.waiting.append(shown)
        self.graph.vpush(frame)
        yield from self.done()

    def rest(self) -> Iterator[tuple[Shown, av.VideoFrame]]:
        """Flush the filter: yield the frames that it still holds, each with its picture."""
        if self.kind is not None:
            self.graph.vpush(None)
            yield from self.done()
            self.kind = None

    def done(self) -> Iterator[tuple[Shown, av.VideoFrame]]:
        """Yield the pictures that the filter has ready, each with its frame."""
        while True:
            try:
                picture = self.graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield self.waiting.popleft(), picture
