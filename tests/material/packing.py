"""Call `pack` with the keys of conf/pack.yaml as arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep import pack as module
from data_prep.pack import PackReport
from videodiff.verbs.pack import settings_of

TREE = {
    "captions": None,
    "require_caption": True,
    "video_column": None,
    "caption_column": None,
    "short_side": 720,
    "crf": 18,
    "hdr": "tonemap",
    "deinterlace": "off",
    "workers": None,
    "timeout": 300.0,
    "shard_bytes": 256 * 2**20,
}


def pack(source: Path, out: Path, progress: Callable[[int, int], None] | None = None, **keys: Any) -> PackReport:
    """Pack with these keys, and the defaults for all others."""
    settings = settings_of({**TREE, "source": source, "out": out, **keys})
    return module.pack(settings, progress) if progress else module.pack(settings)
