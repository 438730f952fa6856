"""What `videodiff pack` packs: a folder of videos with captions beside them, or a table that names both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.request import InputError
from data_prep.sources.folder import VIDEOS, files_below
from data_prep.sources.rows import csv_rows, json_rows

# A still picture is packed as a video of one frame.
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
VIDEO_COLUMNS = ("video", "image", "path", "file", "filename", "video_path", "clip")
CAPTION_COLUMNS = ("caption", "captions", "text")
USED = ("source", "licence", "license")


@dataclass(frozen=True)
class Rejection:
    """A clip that was left out: its name in the source, the class of the reason, and what was found."""

    name: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Clip:
    """A video to pack and what is known of it."""

    name: str
    path: Path
    captions: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""
    truth: Any = None

    @property
    def key(self) -> str:
        """The name without extension; webdataset takes what follows the first dot for the extension."""
        return Path(self.name).with_suffix("").as_posix().replace("/", "__").replace(".", "_")


@dataclass
class Found:
    """What a source holds: clips, entries that cannot be used, and columns that nothing reads."""

    clips: list[Clip] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def find_clips(
    source: str | Path,
    captions: str | Path | None = None,
    video_column: str | None = None,
    caption_column: str | None = None,
) -> Found:
    """List the clips and still images of a folder, or of a CSV or JSONL table, in the order of their names or lines.

    A table names videos relative to `source` where that is a folder and `captions` the table, else to its own folder;
    a video that is named in several lines has several captions.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"source: found no {source}, expected a folder of videos, a CSV or a JSONL")
    if captions is not None and not source.is_dir():
        raise ValueError(f"source: found the file {source}, expected a folder, as captions={captions} is the table")
    table = source if source.is_file() else captions
    if table is None:
        found = from_folder(source)
    else:
        folder = source if source.is_dir() else source.parent
        found = from_table(folder, Path(table), video_column, caption_column)
    check_keys(found.clips)
    if not found.clips and not found.rejected:
        raise ValueError(
            f"source: found no clip in {source}, expected {', '.join(VIDEOS + IMAGES)} or a table that names them"
        )
    return found


def from_folder(folder: Path) -> Found:
    """List the videos and images below a folder.

    `<name>.txt` is a caption, `<name>.json` may hold captions, source, licence.
    """
    found = Found()
    paths = list(files_below(folder, VIDEOS + IMAGES))
    videos = {path.with_suffix("") for path in paths if path.suffix.lower() in VIDEOS}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in IMAGES and path.with_suffix("") in videos:
            found.rejected.append(Rejection(name, "picture of a video", "found a video of the same name beside it"))
            continue
        try:
            inside(folder, name)
            found.clips.append(Clip(name, path, **sidecars(path)))
        except OutsideError as error:
            found.rejected.append(Rejection(name, "path leaves the folder", str(error)))
        except (ValueError, OSError) as error:
            found.rejected.append(Rejection(name, "caption unreadable", str(error)))
    return found


def sidecars(path: Path) -> dict[str, Any]:
    """Return what the files beside a video say of it."""
    text, notes = path.with_suffix(".txt"), path.with_suffix(".json")
    record = json.loads(notes.read_text("utf-8-sig")) if notes.is_file() else {}
    if not isinstance(record, dict):
        raise ValueError(f"{notes.name}: found {type(record).__name__}, expected an object")
    captions = [text.read_text("utf-8-sig")] if text.is_file() else []
    captions += [caption for name in CAPTION_COLUMNS for caption in as_list(record.get(name))]
    return {"captions": tidy(captions), "truth": record.get("truth"), **provenance(record)}


def from_table(folder: Path, table: Path, video_column: str | None, caption_column: str | None) -> Found:
    """List the clips that a CSV (with a header) or a JSONL names."""
    if not table.is_file():
        raise FileNotFoundError(f"captions: found no file {table}, expected a CSV or a JSONL")
    clips: dict[str, Clip] = {}
    rejected, columns = {}, set()
    for line, record in read_rows(table):
        video = column(record, video_column, VIDEO_COLUMNS, f"{table}:{line}")
        caption = column(record, caption_column, CAPTION_COLUMNS, f"{table}:{line}")
        columns |= record.keys() - {video, caption, *USED}
        name = os.path.relpath(folder / str(record[video]), folder)
        try:
            path = inside(folder, name)
        except OutsideError as error:
            rejected[name] = Rejection(name, "path leaves the folder", str(error))
            continue
        before = clips.get(name, Clip(name, path))
        captions = tidy([*before.captions, *as_list(record[caption])])
        clips[name] = Clip(name, path, captions, **provenance(record))
    return Found(list(clips.values()), list(rejected.values()), sorted(map(str, columns)))


def read_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and record of a CSV or a JSONL; a line that is none is an error."""
    for place, row in csv_rows(table) if table.suffix.lower() == ".csv" else json_rows(table):
        if isinstance(row, InputError):
            raise ValueError(f"{table}:{place.line}: {row.detail}")
        yield place.line, row


def column(record: dict[str, Any], wanted: str | None, known: tuple[str, ...], where: str) -> str:
    """Return the name of a column: the one asked for, else the first known one."""
    names = [name for name in ((wanted,) if wanted else known) if name in record]
    if not names:
        columns = ", ".join(map(str, record))
        raise ValueError(f"{where}: found columns {columns}, expected {wanted or ' or '.join(known)}")
    return names[0]


class OutsideError(ValueError):
    """A path that leads out of the source folder."""


def inside(folder: Path, name: str) -> Path:
    """Return the path of a video, which must lie below the folder, links followed."""
    path = folder / name
    if folder.resolve() not in path.resolve().parents:
        raise OutsideError(f"found {name!r}, expected a path inside {folder}")
    return path


def provenance(record: dict[str, Any]) -> dict[str, str]:
    """Return source and licence where a record has them."""
    licence = record.get("licence") or record.get("license") or ""
    return {"source": str(record.get("source") or ""), "licence": str(licence)}


def as_list(value: Any) -> list[str]:
    """Return captions as a list: none, one, or a list of them; anything else is an error."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(caption, str) for caption in values):
        raise ValueError(f"caption: found {value!r}, expected text or a list of texts")
    return values


def tidy(captions: list[str]) -> tuple[str, ...]:
    """Return captions with white space collapsed, without empty ones and repetitions."""
    return tuple(dict.fromkeys(text for text in (" ".join(caption.split()) for caption in captions) if text))


def check_keys(clips: list[Clip]) -> None:
    """Raise where two videos would have the same key."""
    seen: dict[str, str] = {}
    for clip in clips:
        if clip.key in seen:
            raise ValueError(
                f"source: found {seen[clip.key]!r} and {clip.name!r}, both of key {clip.key!r}; rename one"
            )
        seen[clip.key] = clip.name
