"""Captions that lie apart from their clips, joined by clip id: an index on disk, as millions do not fit memory."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from data_prep.books.request import BadInput, Caption, InputError, Place, checked_caption, checked_name, needed
from data_prep.sources.metadata.rows import files_of, json_rows
from videodiff.data.storage.files import sync
from videodiff.data.storage.listing import Fault


class CaptionIndex:
    """The captions of a JSONL, or of a folder of them: lines of `clip_id` and `text`, one or several.

    The index at `path` is written atomically, and again if the name, size or time of a JSONL has changed, or if it lies
    at a URL. `origin` is noted with each caption; `bad` lists the lines without a usable caption.
    """

    def __init__(self, source: str | Path, path: str | Path, origin: str) -> None:
        self.origin, path = origin, Path(path)
        state = json.dumps([(name, *version_of(file)) for name, file in files_of(source, ".jsonl")])
        if "://" in str(source) or not path.is_file() or read_state(path) != state:
            build_index(source, path, state)
        self.base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def find(self, clip: str) -> tuple[Caption, ...]:
        """Return the captions of a clip in the order of their lines."""
        rows = self.base.execute("SELECT text FROM captions WHERE clip = ? ORDER BY rowid", (clip,))
        return tuple(Caption(text, self.origin) for (text,) in rows)

    @property
    def bad(self) -> list[BadInput]:
        """The lines that hold no usable caption."""
        rows = self.base.execute("SELECT file, line, reason, detail FROM bad ORDER BY rowid")
        return [BadInput(Place(file, line), reason, detail, self.origin) for file, line, reason, detail in rows]


def version_of(file: str | Fault) -> tuple[Any, ...]:
    """Return what tells that a file has changed: size and time, or why it cannot be read; nothing for a URL."""
    if isinstance(file, Fault):
        return (file.detail,)
    if "://" in file:
        return ()
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns


def read_state(path: Path) -> str:
    """Return which files an index was made of."""
    base = sqlite3.connect(path)
    (state,) = base.execute("SELECT state FROM made_of").fetchone()
    base.close()
    return state


def build_index(source: str | Path, path: Path, state: str) -> None:
    """Write an index beside its place and move it there."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    base = sqlite3.connect(partial)
    base.executescript(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
        "CREATE TABLE captions (clip TEXT, text TEXT);"
        "CREATE TABLE bad (file TEXT, line INTEGER, reason TEXT, detail TEXT);"
        "CREATE TABLE made_of (state TEXT);"
    )
    for place, row in json_rows(source):
        try:
            base.executemany("INSERT INTO captions VALUES (?, ?)", parse_line(row))
        except InputError as error:
            base.execute("INSERT INTO bad VALUES (?, ?, ?, ?)", (place.name, place.line, error.reason, error.detail))
    base.execute("INSERT INTO made_of VALUES (?)", (state,))
    # Sort once at the end: inserting random keys in order would not be linear.
    base.execute("CREATE INDEX by_clip ON captions (clip)")
    base.commit()
    base.close()
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


def parse_line(row: dict[str, Any] | InputError) -> list[tuple[str, str]]:
    """Return clip id and text of each caption of a line."""
    if isinstance(row, InputError):
        raise row
    captions = checked_caption(needed(row, "text"), "")
    if not captions:
        raise InputError("bad-text", "found an empty text, expected words")
    clip = checked_name(needed(row, "clip_id"))
    return [(clip, text) for text in dict.fromkeys(caption.text for caption in captions)]
