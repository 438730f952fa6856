"""Koala-36M (KwaiVGI/Koala-36M): CSV, a row a clip; `videoID` is `<YouTube id>_<n>`, `timestamp` a Python list as text.

videoID, url, timestamp, caption, and a column for each of its scores (clarity, aesthetic, motion, training suitability)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.books.request import ClipRequest, Place, checked_caption, checked_name, checked_url
from data_prep.sources.metadata.numbers import noted
from data_prep.sources.metadata.rows import Items, csv_rows, parse_list, to_items
from data_prep.sources.metadata.times import parse_pair
from videodiff.data.storage.listing import Passed

ORIGIN = "koala-36m"
COLUMNS = ("videoID", "url", "timestamp", "caption")


def read_koala(source: str | Path, licence: str = "", passed: Passed | None = None) -> Items:
    """Yield the clips of a CSV file or a folder of them; every further column that is not empty is a score."""
    return to_items(csv_rows(source, *COLUMNS, passed=passed), lambda place, row: parse_clip(place, row, licence))


def parse_clip(place: Place, row: dict[str, Any], licence: str) -> Iterator[ClipRequest]:
    """Yield the clip of one row."""
    name, url, span = checked_name(row["videoID"]), checked_url(row["url"]), parse_pair(parse_list(row["timestamp"]))
    notes, omitted = {}, []
    for column, value in row.items():
        if column not in COLUMNS:
            noted(column, value or None, notes, omitted)
    captions, parent = checked_caption(row["caption"], ORIGIN), name.rpartition("_")[0]
    yield ClipRequest(place, url, span, captions, licence, parent, name, None, notes, ORIGIN, tuple(omitted))
