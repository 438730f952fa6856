"""WebVid (m-bain/webvid): CSV, a row a video, which is wanted whole; `name` is its caption.

videoid, name, page_dir, duration, contentUrl
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.books.request import ClipRequest, InputError, Place, checked_caption, checked_name, checked_url
from data_prep.sources.metadata.rows import Items, csv_rows, to_items
from data_prep.sources.metadata.times import parse_time
from videodiff.data.storage.listing import Passed

ORIGIN = "webvid"


def read_webvid(source: str | Path, licence: str = "", passed: Passed | None = None) -> Items:
    """Yield the videos of a CSV file or a folder of them; `duration` (`PT00H00M17S`) is noted in seconds."""
    rows = csv_rows(source, "videoid", "name", "contentUrl", passed=passed)
    return to_items(rows, lambda place, row: parse_video(place, row, licence))


def parse_video(place: Place, row: dict[str, Any], licence: str) -> Iterator[ClipRequest]:
    """Yield the video of one row."""
    name, url = checked_name(row["videoid"]), checked_url(row["contentUrl"])
    notes, omitted = {}, ()
    if "duration" in row:
        try:
            notes["duration"] = float(parse_time(row["duration"]))
        except InputError:
            omitted = ("duration",)
    captions = checked_caption(row["name"], ORIGIN)
    yield ClipRequest(place, url, None, captions, licence, name, name, None, notes, ORIGIN, omitted)
