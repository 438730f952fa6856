"""Any CSV, JSONL or Parquet of a clip a row, whose columns are named by the user."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.books.request import (
    ClipRequest,
    InputError,
    Place,
    checked_caption,
    checked_name,
    checked_source,
    checked_text,
    needed,
    show,
)
from data_prep.sources.metadata.numbers import parse_number
from data_prep.sources.metadata.rows import (
    MAX_DEPTH,
    READERS,
    Items,
    Rows,
    files_of,
    reader_of,
    to_items,
)
from data_prep.sources.metadata.times import parse_span
from videodiff.data.storage.listing import Passed, ending_of

MEANINGS = ("video", "start", "end", "caption", "licence", "parent", "name", "fps")


def read_table(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    unit: str = "",
    licence: str = "",
    origin: str = "table",
    passed: Passed | None = None,
) -> Items:
    """Yield the clips of a `.csv`, `.jsonl` or `.parquet`, or of a folder of one kind of them.

    `columns` maps each of `MEANINGS` that the table has to the name of its column. `video` is needed; `start` and `end`
    come together. `unit` is the unit of both: empty for clock strings, ISO-8601 durations and seconds, else
    `microseconds` or `frames` (which need `fps`). A caption may be a list of texts. Further columns become notes.
    """
    if not columns:
        raise ValueError(
            "reader.columns: found none, expected the column of each meaning, as in "
            "reader.columns={video: path, caption: text}; meanings: " + ", ".join(MEANINGS)
        )
    unknown, one = [meaning for meaning in columns if meaning not in MEANINGS], "start" in columns
    if unknown or "video" not in columns or one != ("end" in columns) or (unit == "frames" and "fps" not in columns):
        raise ValueError(
            f"reader.columns: found {show(dict(columns))} with reader.unit={unit!r}, expected video, start and end "
            f"together, fps for frames, and none but {', '.join(MEANINGS)}"
        )
    rows = rows_of(source, columns.values(), passed)
    return to_items(rows, lambda place, row: parse_clip(place, row, columns, unit, licence, origin))


def rows_of(source: str | Path, columns: Iterable[str], passed: Passed | None = None) -> Rows:
    """Return the rows of a table of any kind."""
    names = [name for name, _ in files_of(source, *READERS)]
    found = {ending_of(name).lower(): reader for name in names if (reader := reader_of(name))}
    if len(set(found.values())) != 1:
        raise ValueError(
            f"source: found {' and '.join(sorted(found)) or 'none'} in {source}, expected one of {', '.join(READERS)}"
        )
    return next(iter(found.values()))(source, *columns, passed=passed)


def parse_clip(
    place: Place, row: dict[str, Any], columns: Mapping[str, str], unit: str, licence: str, origin: str
) -> Iterator[ClipRequest]:
    """Yield the clip of one row."""
    cell = {meaning: row.get(column) for meaning, column in columns.items()}
    source = checked_source(needed(row, columns["video"]))
    span = None
    if "start" in columns:
        span = parse_span(needed(row, columns["start"]), needed(row, columns["end"]), unit, cell.get("fps"))
    notes, omitted = {}, []
    for name, value in row.items():
        if name not in columns.values() and value is not None:
            try:
                notes[str(name)] = plain(value)
            except InputError:
                omitted.append(str(name))
    yield ClipRequest(
        place,
        source,
        span,
        checked_caption(cell.get("caption"), origin),
        licence_of(cell.get("licence"), licence, omitted),
        text_of(cell.get("parent")),
        checked_name(cell["name"]) if cell.get("name") else "",
        notes=notes,
        origin=origin if "caption" in columns else "",
        omitted=tuple(omitted),
    )


def text_of(value: Any) -> str:
    """Return a cell of text or of a number as text; anything else is an InputError."""
    return checked_text(str(value) if isinstance(value, int | float) and value == value else value)


def licence_of(value: Any, otherwise: str, omitted: list[str]) -> str:
    """Return the licence that a row states, or `otherwise` where it states none; one that is no text is in `omitted`.

    Such a clip has no known licence: not `otherwise`, which is for clips that state none.
    """
    try:
        return text_of(value) or otherwise
    except InputError:
        omitted.append("licence")
        return ""


def plain(value: Any) -> Any:
    """Return a cell as JSON, or as text if JSON has no such type; an InputError for NaN and for too deep a nesting."""
    if isinstance(value, float):
        return float(parse_number(value))
    if isinstance(value, list | dict) and depth(value) > MAX_DEPTH:
        raise InputError("bad-cell", f"found nested lists over {MAX_DEPTH} deep, expected fewer")
    return json.loads(json.dumps(value, default=str))


def depth(value: Any) -> int:
    """Return how deep lists and objects are nested, counted only as far as needed."""
    level, found = [value], 0
    while level and found <= MAX_DEPTH:
        inside = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level, found = [value for items in inside for value in items], found + bool(inside)
    return found
