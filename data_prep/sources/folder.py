"""A folder of video; beside `<name>.mp4` may lie its caption `<name>.txt` and its notes `<name>.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.request import BadInput, ClipRequest, InputError, Place, checked_path, checked_text, show
from data_prep.sources.rows import Items
from data_prep.sources.table import parse_captions

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
CAPTIONS = ("caption", "captions", "text")
LICENCES = ("licence", "license")


def read_folder(folder: str | Path, licence: str = "") -> Items:
    """Yield the videos below a folder, in the order of their names, each whole.

    Of the notes, `caption`, `captions` and `text` (one text or a list) and `licence` are taken as such.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"source: found no folder {folder}, expected one of {', '.join(VIDEOS)}")
    for path in files_below(folder, VIDEOS):
        name = path.relative_to(folder).as_posix()
        try:
            check_inside(folder, path)
            yield parse_video(name, *read_sidecars(path), licence)
        except InputError as error:
            yield BadInput(Place(name), error.reason, error.detail)


def files_below(folder: Path, kinds: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files of these kinds in a folder and in those in it, links to folders left out.

    Memory holds one folder's names.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from files_below(path, kinds)
        elif path.suffix.lower() in kinds:
            yield path


def check_inside(folder: Path, path: Path) -> None:
    """Raise an InputError where a path leads out of a folder, links followed."""
    if folder.resolve() not in path.resolve().parents:
        raise InputError("bad-path", f"found {show(path.name)}, expected a path inside {folder}")


def read_sidecars(path: Path) -> tuple[str, Any]:
    """Return the text and the notes beside a video, empty where there are none."""
    text, notes = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        caption = text.read_text("utf-8-sig") if text.is_file() else ""
        record = json.loads(notes.read_text("utf-8-sig")) if notes.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("bad-sidecar", f"found a file beside it that cannot be read: {show(str(error))}") from error
    return caption, record


def parse_video(name: str, text: str, notes: Any, licence: str) -> ClipRequest:
    """Return the request of a video and of what lies beside it."""
    if not isinstance(notes, dict):
        raise InputError("bad-sidecar", f"found {show(notes)}, expected an object")
    captions = parse_captions([text], "sidecar")
    for field in CAPTIONS:
        captions += parse_captions(notes.get(field), "sidecar")
    licence = next((checked_text(notes[field]) for field in LICENCES if notes.get(field)), licence)
    rest = {field: value for field, value in notes.items() if field not in CAPTIONS + LICENCES}
    return ClipRequest(
        Place(name), checked_path(name), captions=tuple(dict.fromkeys(captions)), licence=licence, notes=rest
    )
