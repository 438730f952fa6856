"""InternVid: JSON lines of one clip each (OpenGVLab/InternVid).

{"YoutubeID": "...", "Start_timestamp": "00:00:10.500", "End_timestamp": "00:00:12.300", "Caption": "...",
 "Aesthetic_Score": 4.2, "UMT_Score": 0.41}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.books.request import ClipRequest, Place, checked_caption, checked_name, needed
from data_prep.sources.metadata.numbers import noted
from data_prep.sources.metadata.rows import Items, json_rows, to_items
from data_prep.sources.metadata.times import parse_span
from videodiff.data.storage.listing import Passed

ORIGIN = "internvid"
LICENCE = "CC-BY-NC-SA-4.0"
WATCH = "https://www.youtube.com/watch?v="


def read_internvid(source: str | Path, licence: str = LICENCE, passed: Passed | None = None) -> Items:
    """Yield the clips of a JSONL file or a folder of them; the UMT similarity is the caption's score."""
    return to_items(json_rows(source, passed), lambda place, row: parse_clip(place, row, licence))


def parse_clip(place: Place, row: dict[str, Any], licence: str) -> Iterator[ClipRequest]:
    """Yield the clip of one line."""
    parent = checked_name(needed(row, "YoutubeID"))
    span = parse_span(needed(row, "Start_timestamp"), needed(row, "End_timestamp"))
    notes, omitted = {}, []
    for name in ("UMT_Score", "Aesthetic_Score"):
        noted(name, row.get(name), notes, omitted)
    captions = checked_caption(row.get("Caption"), ORIGIN, notes.pop("UMT_Score", None))
    url, left = WATCH + parent, tuple(omitted)
    yield ClipRequest(place, url, span, captions, licence, parent, notes=notes, origin=ORIGIN, omitted=left)
