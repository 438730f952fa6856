"""What `videodiff pack` packs: a folder of videos with captions beside them, or a table that names both."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.books.request import InputError
from data_prep.sources.folder import PREVIEW, leads_out, read_sidecars
from data_prep.sources.metadata.rows import jsonl_rows, reader_of
from videodiff.data.samples.sidecars import SidecarError, Text, entries, provenance, read_notes, read_texts
from videodiff.data.storage.files import no_file
from videodiff.data.storage.listing import PICTURES, SIDECARS, TABLES, VIDEOS, Fault, Listed, Passed, Scan, ending_of

VIDEO_COLUMNS = ("video", "image", "path", "file", "filename", "file_name", "video_path", "clip")
CAPTION_COLUMNS = ("caption", "captions", "text")
USED = ("source", "url", "licence", "license")
# Bytes of a key: a file system allows 255 for the name of a file, with its extension.
KEY_LENGTH = 200


@dataclass(frozen=True)
class Rejection:
    """A clip that was left out: its name in the source, the class of the reason, and what was found."""

    name: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Clip:
    """A video to pack and what is known of it; `key` is its name in the dataset, see `with_keys`."""

    name: str
    path: Path
    texts: tuple[Text, ...] = ()
    source: str = ""
    licence: str = ""
    truth: Any = None
    key: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions without their origins."""
        return tuple(text.text for text in self.texts)


@dataclass
class Found:
    """What a source holds: clips, entries that cannot be used, columns that nothing reads, files passed over."""

    clips: list[Clip] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    passed: Passed = field(default_factory=Passed)


def find_clips(
    source: str | Path,
    captions: str | Path | None = None,
    video_column: str | None = None,
    caption_column: str | None = None,
) -> Found:
    """List the clips and still images of a folder, or of a CSV, JSONL or Parquet, in the order of names or lines.

    A table names videos relative to `source` where that is a folder and `captions` the table, else to its own folder;
    a video that is named in several lines has several captions.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"source: found no {source}, expected a folder of videos, a CSV or a JSONL")
    if captions is not None and not source.is_dir():
        raise ValueError(f"source: found the file {source}, expected a folder, as captions={captions} is the table")
    if source.is_file() and ending_of(source.name).lower() in VIDEOS + PICTURES:
        raise ValueError(f"source: found the video {source}, expected the folder that it is in, or a table")
    table = source if source.is_file() else captions
    if table is None:
        found = from_folder(source)
    else:
        folder = source if source.is_dir() else source.parent
        found = from_table(folder, Path(table), video_column, caption_column)
    if table is not None and source.is_dir():
        count_unnamed(source, Path(table), found)
    if not found.clips and not found.rejected:
        beside = f"; there are {found.passed}" if found.passed else ""
        raise ValueError(
            f"source: found no clip in {source}, expected {', '.join(VIDEOS[:5])}, ... or a table that names "
            f"them{beside}"
        )
    found.clips = with_keys(found.clips)
    return found


def from_folder(folder: Path) -> Found:
    """List the videos and images below a folder.

    `<name>.txt` is a caption, `<name>.json` may hold captions, source, licence, and `<name>.csv` captions.
    """
    found = Found()
    for item in Scan(folder, VIDEOS + PICTURES, found.passed, SIDECARS):
        if isinstance(item, Fault):
            found.rejected.append(Rejection(item.name, "video unreadable", item.detail))
        elif item.preview:
            found.rejected.append(Rejection(item.name, PREVIEW, "found a video of the same name beside it"))
        else:
            try:
                found.clips.append(Clip(item.name, item.path, **said(item)))
            except (InputError, SidecarError) as error:
                found.rejected.append(Rejection(item.name, "caption unreadable", str(error)))
    return found


def said(item: Listed) -> dict[str, Any]:
    """Return what the files beside a video say of it."""
    members = read_sidecars(item)
    notes = read_notes(members)
    return {"texts": tuple(read_texts(members)), "truth": notes.get("truth"), **provenance(notes)}


def from_table(folder: Path, table: Path, video_column: str | None, caption_column: str | None) -> Found:
    """List the clips that a CSV (with a header), a JSONL or a Parquet names; a line that names none is rejected."""
    if not table.is_file():
        raise FileNotFoundError(f"captions: found {no_file(table)}, expected a CSV or a JSONL")
    clips: dict[str, Clip] = {}
    rejected, columns, missing = {}, set(), None
    for line, record in read_rows(table):
        where = f"{table.name}:{line}"
        if isinstance(record, InputError):
            if record.reason == "unreadable-file":
                missing = missing or ValueError(f"{table}: {record.detail}")
            rejected[where] = Rejection(where, "line unreadable", record.detail)
            continue
        try:
            video = column(record, "video_column", video_column, VIDEO_COLUMNS, where)
            caption = column(record, "caption_column", caption_column, CAPTION_COLUMNS, where)
            if record[video] is None:
                raise ValueError(f"{where}: found no {video}, expected the path of one")
        except ValueError as error:
            missing = missing or error
            rejected[where] = Rejection(where, "line unreadable", str(error))
            continue
        columns |= record.keys() - {video, caption, *USED}
        name = os.path.normpath(str(record[video]))
        try:
            if why := leads_out(folder, folder / name):
                rejected[name] = Rejection(name, "path leaves the folder", why)
                continue
            name = os.path.relpath(folder / name, folder)
            before = clips.get(name, Clip(name, folder / name))
            texts = dict.fromkeys([*before.texts, *(text for text in entries(record[caption], caption) if text.text)])
            clips[name] = Clip(name, folder / name, tuple(texts), **provenance(record))
        except SidecarError as error:
            rejected[where] = Rejection(where, "caption unreadable", str(error))
    if missing is not None and not clips:
        raise missing
    if not clips and reader_of(table.name) is None:
        raise ValueError(
            f"{table}: found no line of JSON that names a clip, expected JSON lines, or another ending: "
            f"{', '.join(TABLES)}"
        )
    return Found(list(clips.values()), list(rejected.values()), sorted(map(str, columns)))


def count_unnamed(folder: Path, table: Path, found: Found) -> None:
    """Count the files of a folder that its table does not name; the table itself may lie there."""
    named = {one.name for one in (*found.clips, *found.rejected)}
    for item in Scan(folder, VIDEOS + PICTURES, found.passed, SIDECARS, apart=table):
        if item.name not in named:
            found.passed["video or picture without a line in the table"] += 1


def read_rows(table: Path) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """Yield line number and record of a CSV, a JSONL or a Parquet, or what is wrong with a line."""
    read = reader_of(table.name) or jsonl_rows
    for place, row in read(table):
        yield place.line, row


def column(record: dict[str, Any], key: str, wanted: str | None, known: tuple[str, ...], where: str) -> str:
    """Return the name of a column: the one that the setting `key` asks for, else the first known one."""
    names = [name for name in ((wanted,) if wanted else known) if name in record]
    if not names:
        columns = ", ".join(map(str, record))
        expected = f"{key}={wanted}" if wanted else f"one of {', '.join(known)}, or {key}=<the name of one>"
        raise ValueError(f"{where}: found columns {columns}, expected {expected}")
    return names[0]


def with_keys(clips: list[Clip]) -> list[Clip]:
    """Return clips with their keys: unique, and safe as names of files on every system.

    A key is the name without ending, with `__` for a slash and `_` for a dot. Where more must be replaced, or two keys
    are the same but for letters' case and composed accents, eight digits of the name's SHA-256 are appended.
    """
    keys = [plain_key(clip.name) for clip in clips]
    met = Counter(map(folded, keys))
    safe = [
        key if met[folded(key)] == 1 and is_safe(key) else marked(key, clip.name, 8)
        for key, clip in zip(keys, clips, strict=True)
    ]
    # A name may already end in digits that look like a hash.
    met = Counter(map(folded, safe))
    return [
        replace(clip, key=key if met[folded(key)] == 1 else marked(key, clip.name, 64))
        for key, clip in zip(safe, clips, strict=True)
    ]


def plain_key(name: str) -> str:
    """Return a name without ending, dots and slashes: webdataset takes what follows the first dot for the extension."""
    return name.removesuffix(ending_of(name)).replace("/", "__").replace(".", "_")


def folded(key: str) -> str:
    """Return the form of a key that is equal for two keys if some file system confuses them."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", key).casefold())


UNSAFE = r"[\\/.\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"


def is_safe(key: str) -> bool:
    """Tell whether a key can stay as it is."""
    plain = key == key.strip() and unicodedata.is_normalized("NFC", key) and not re.search(UNSAFE, key)
    return bool(plain and key and len(key.encode()) <= KEY_LENGTH)


def marked(key: str, name: str, digits: int) -> str:
    """Return a safe key that no other name has."""
    key = re.sub(UNSAFE, "_", unicodedata.normalize("NFC", key)).strip()
    head = key.encode()[: KEY_LENGTH - digits - 1].decode(errors="ignore").strip() or "clip"
    return f"{head}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:digits]}"


def name_record(name: str) -> dict[str, str]:
    """Return the original name as the json of a clip holds it, with its bytes where it is not Unicode."""
    raw = os.fsencode(name)
    known = {"name": raw.decode(errors="backslashreplace")}
    return known if raw.decode(errors="ignore").encode() == raw else known | {"name_bytes": raw.hex()}
