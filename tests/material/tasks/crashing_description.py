"""A decoder of `index` that crashes, hangs or raises at one clip; it imports little, so that processes start fast."""

from __future__ import annotations

import ctypes
import signal
from typing import Any

from videodiff.data.samples import indexing

DESCRIBE = indexing.describe


def crash(sample: indexing.Sample, shard: str) -> Any:
    """Describe a sample, with a real segmentation fault at that of the key `crash`."""
    if sample.key == "crash":
        ctypes.string_at(0)
    if sample.key == "hang":
        signal.pause()
    if sample.key == "raise":
        raise OSError("no room")
    return DESCRIBE(sample, shard)
