"""OpenVid-1M: CSV, a row a clip that is cut already, columns with blanks in their names (nkp37/OpenVid-1M).

    video, caption, aesthetic score, motion score, temporal consistency score, camera motion, frame, fps, seconds

`video` is `<YouTube id>_<scene>_<frame>to<frame>.mp4`: the file holds exactly these frames of its parent video.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.books.request import ClipRequest, InputError, Place, checked_caption, checked_name
from data_prep.sources.metadata.numbers import noted
from data_prep.sources.metadata.rows import Items, csv_rows, to_items
from data_prep.sources.metadata.times import parse_span
from videodiff.data.storage.listing import Passed

ORIGIN = "openvid-1m"
NAME = re.compile(r"(.+)_([0-9]+)_([0-9]+)to([0-9]+)\.mp4")
SCORES = ("aesthetic score", "motion score", "temporal consistency score")


def read_openvid(source: str | Path, licence: str = "", passed: Passed | None = None) -> Items:
    """Yield the clips of a CSV file or a folder of them; their files are found below the folder of the videos."""
    rows = csv_rows(source, "video", "caption", passed=passed)
    return to_items(rows, lambda place, row: parse_clip(place, row, licence))


def parse_clip(place: Place, row: dict[str, Any], licence: str) -> Iterator[ClipRequest]:
    """Yield the clip of one row; its place in the parent becomes a note of frames and of seconds."""
    name = checked_name(row["video"])
    notes, omitted = {"camera motion": row["camera motion"]} if row.get("camera motion") else {}, []
    for score in SCORES:
        noted(score, row.get(score), notes, omitted)
    parts = NAME.fullmatch(name)
    try:
        if parts:
            start, end = parse_span(parts[3], parts[4], "frames", row.get("fps"))
            notes |= {"parent_frames": [int(parts[3]), int(parts[4])], "parent_seconds": [float(start), float(end)]}
    except InputError:
        omitted += ["parent_frames", "parent_seconds"]
    captions, parent = checked_caption(row["caption"], ORIGIN), parts[1] if parts else ""
    yield ClipRequest(place, name, None, captions, licence, parent, name, None, notes, ORIGIN, tuple(omitted))
