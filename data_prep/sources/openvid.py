"""OpenVid-1M: CSV, a row a clip that is cut already, columns with blanks in their names (nkp37/OpenVid-1M).

    video, caption, aesthetic score, motion score, temporal consistency score, camera motion, frame, fps, seconds

`video` is `<YouTube id>_<scene>_<frame>to<frame>.mp4`: the frames of the parent that are all the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.request import ClipRequest, Place, checked_caption, checked_name, checked_number
from data_prep.sources.rows import Items, csv_rows, to_items
from data_prep.times import parse_span

NAME = re.compile(r"(.+)_([0-9]+)_([0-9]+)to([0-9]+)\.mp4")
SCORES = ("aesthetic score", "motion score", "temporal consistency score")


def read_openvid(source: str | Path, licence: str = "") -> Items:
    """Yield the clips of a CSV file or a folder of them; their files are found below the folder of the videos."""
    rows = csv_rows(source, "video", "caption", *SCORES, "camera motion", "frame", "fps", "seconds")
    return to_items(rows, lambda place, row: parse_clip(place, row, licence))


def parse_clip(place: Place, row: dict[str, Any], licence: str) -> Iterator[ClipRequest]:
    """Yield the clip of one row; its place in the parent becomes a note of frames and of seconds."""
    name = checked_name(row["video"])
    notes = {score: checked_number(row[score]) for score in SCORES} | {"camera motion": row["camera motion"]}
    parent = NAME.fullmatch(name)
    if parent:
        start, end = parse_span(parent[3], parent[4], "frames", row["fps"])
        notes |= {"parent_frames": [int(parent[3]), int(parent[4])], "parent_seconds": [float(start), float(end)]}
    captions = checked_caption(row["caption"], "openvid-1m")
    yield ClipRequest(place, name, None, captions, licence, parent[1] if parent else "", name, notes=notes)
