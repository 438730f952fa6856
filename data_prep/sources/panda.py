"""Panda-70M: CSV, a row a video, its cells Python lists as text (snap-research/Panda-70M, dataset_dataloading).

    videoID, url, timestamp, caption, matching_score [, desirable_filtering, shot_boundary_detection]

`timestamp` is `[['0:00:16.300', '0:00:32.566'], ...]`; all lists of a row have the same length. Other tools run `eval`
on these cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.books.request import BadInput, ClipRequest, InputError, Place, checked_caption, checked_name, checked_url
from data_prep.sources.metadata.numbers import noted
from data_prep.sources.metadata.rows import Items, csv_rows, parse_list, parse_notes, to_items
from data_prep.sources.metadata.times import parse_pair
from videodiff.data.storage.listing import Passed

ORIGIN = "panda-70m"
COLUMNS = ("videoID", "url", "timestamp", "caption")
NOTES = ("matching_score", "desirable_filtering", "shot_boundary_detection")


def read_panda(source: str | Path, licence: str = "", passed: Passed | None = None) -> Items:
    """Yield the clips of a CSV file or a folder of them."""
    return to_items(csv_rows(source, *COLUMNS, passed=passed), lambda place, row: parse_video(place, row, licence))


def parse_video(place: Place, row: dict[str, Any], licence: str) -> Iterator[ClipRequest | BadInput]:
    """Yield the clips of one row; if it has not as many spans as captions, no caption can be trusted: it is rejected.

    The other lists become notes; a list that cannot be used is left out.
    """
    url, parent = checked_url(row["url"]), checked_name(row["videoID"])
    lists = {name: parse_list(row[name]) for name in COLUMNS[2:]}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) != 1 or 0 in lengths:
        found = {name: len(values) for name, values in lists.items()}
        raise InputError("unequal-lists", f"found lists of lengths {found}, expected one length from 1 on")
    told = {name: parse_notes(row[name], lengths.copy().pop()) for name in NOTES if name in row}
    lost = [name for name, values in told.items() if values is None]
    lists |= {name: values for name, values in told.items() if values is not None}
    for item, values in enumerate(zip(*lists.values(), strict=True), 1):
        clip, omitted = dict(zip(lists, values, strict=True)), list(lost)
        score: dict[str, float] = {}
        noted("matching_score", clip.get("matching_score"), score, omitted)
        try:
            yield ClipRequest(
                place._replace(item=item),
                url,
                parse_pair(clip["timestamp"]),
                checked_caption(clip["caption"], ORIGIN, score.get("matching_score")),
                licence,
                parent,
                f"{parent}.{item - 1}",
                notes={name: clip[name] for name in NOTES[1:] if name in clip},
                origin=ORIGIN,
                omitted=tuple(omitted),
            )
        except InputError as error:
            yield BadInput(place._replace(item=item), error.reason, error.detail)
