"""HD-VILA-100M: JSON lines of one video each, its clips inside; no captions (microsoft/XPretrain, hd-vila-100m).

    {"video_id": "...", "url": "https://www.youtube.com/watch?v=...",
     "clip": [{"clip_id": "<video_id>.<n>.mp4", "span": ["00:00:17.759", "00:00:23.279"]}, ...]}

Captions come from second JSON lines of `clip_id` and `text`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from data_prep.books.private import private_folder
from data_prep.books.request import BadInput, ClipRequest, InputError, Place, checked_name, checked_url, needed, show
from data_prep.sources.metadata.captions import CaptionIndex
from data_prep.sources.metadata.rows import Items, json_rows, name_of, to_items
from data_prep.sources.metadata.times import parse_pair
from videodiff.data.storage.listing import Passed

LICENCE = "Microsoft R-UDA v1.0"


def read_hdvila(
    source: str | Path,
    captions: CaptionIndex | str | Path | None = None,
    licence: str = LICENCE,
    work: Path | None = None,
    passed: Passed | None = None,
) -> Items:
    """Yield the clips of a JSONL file or a folder of them; `captions` are joined by clip id, never by position.

    A clip that cannot be used costs none of its video's other clips. captions: a JSONL whose index goes into the folder
    `work`, or the index.
    """
    if isinstance(captions, str | Path):
        if work is None:
            raise ValueError("captions: found no folder for their index, expected work=<folder>")
        private_folder(work)
        captions = CaptionIndex(captions, work / "captions.sqlite", Place(name_of(captions)).name)
    items = to_items(json_rows(source, passed), lambda place, row: parse_video(place, row, licence))
    if captions is None:
        yield from items
        return
    yield from captions.bad
    for item in items:
        if isinstance(item, ClipRequest):
            item = replace(item, captions=captions.find(item.name), origin=captions.origin)
        yield item


def parse_video(place: Place, row: dict[str, Any], licence: str = LICENCE) -> Iterator[ClipRequest | BadInput]:
    """Yield the clips of one line."""
    url, parent, clips = checked_url(needed(row, "url")), checked_name(needed(row, "video_id")), needed(row, "clip")
    if not isinstance(clips, list) or not clips:
        raise InputError("missing-field", f"found clip {show(clips)}, expected a list of clips")
    for item, clip in enumerate(clips, 1):
        at = place._replace(item=item)
        try:
            name, span = parse_clip(clip)
            yield ClipRequest(at, url, span, licence=licence, parent=parent, name=name)
        except InputError as error:
            yield BadInput(at, error.reason, error.detail)


def parse_clip(clip: Any) -> tuple[str, tuple[Fraction, Fraction]]:
    """Return name and span of one clip."""
    if not isinstance(clip, dict):
        raise InputError("missing-field", f"found {show(clip)}, expected an object of clip_id and span")
    return checked_name(needed(clip, "clip_id")), parse_pair(needed(clip, "span"))
