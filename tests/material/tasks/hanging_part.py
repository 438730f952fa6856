"""Readers of the cache: one hangs at a clip, one waits for a host. They import little, so processes start fast."""

from __future__ import annotations

import signal
import time

import numpy as np

from videodiff.data.encoded.precompute import Part, PartReader


class AllButClip1(PartReader):
    """Read a part of any clip but clip1."""

    def __call__(self, part: Part, out: np.ndarray, members: dict[str, bytes] | None = None) -> bool:
        if part.sample.key == "clip1":
            signal.pause()
        return super().__call__(part, out, members)


class FromSlowHost(PartReader):
    """Read parts whose bytes take three seconds to come."""

    def bring(self, part: Part) -> dict[str, bytes] | None:
        time.sleep(3.0)
        return super().bring(part)
