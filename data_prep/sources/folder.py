"""A folder of video; beside `<name>.mp4` may lie its caption `<name>.txt` and its notes `<name>.json`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.books.request import BadInput, Caption, ClipRequest, InputError, Place, checked_path, show
from data_prep.sources.metadata.rows import MAX_DEPTH, Items
from data_prep.sources.table import depth, licence_of
from videodiff.data.samples.sidecars import CAPTIONS, TEXT_LIMIT, CaptionError, SidecarError, read_notes, read_texts
from videodiff.data.storage.listing import MOVING, SIDECARS, VIDEOS, Fault, Listed, Passed, Scan

LICENCES = ("licence", "license")
PREVIEW = "picture of a video"


def read_folder(folder: str | Path, licence: str = "", passed: Passed | None = None) -> Items:
    """Yield the videos below a folder, in the order of their names, each whole; `passed` counts what is passed over.

    In the notes, `caption`, `captions` and `text` (one text or a list) give captions, `licence` gives the licence.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"source: found no folder {folder}, expected one with videos in it")
    passed = Passed() if passed is None else passed
    for item in Scan(folder, (*VIDEOS, *MOVING), passed, SIDECARS):
        if isinstance(item, Listed) and item.preview:
            passed[PREVIEW] += 1
            continue
        try:
            if isinstance(item, Fault):
                raise InputError("unreadable-file", item.detail)
            yield parse_video(item.name, read_sidecars(item), licence, followed=True)
        except InputError as error:
            yield BadInput(Place(item.name), error.reason, error.detail)


def check_inside(folder: Path, path: Path) -> None:
    """Raise an InputError where a path that a table or a tar names leads out of a folder, links followed."""
    if why := leads_out(folder, path):
        raise InputError("bad-path", why)


def leads_out(folder: Path, path: Path) -> str:
    """Return how a path leads out of a folder, links followed; empty where it does not."""
    try:
        root, target = folder.resolve(), path.resolve()
    # Links in a circle, a NUL in the name.
    except (OSError, RuntimeError, ValueError) as error:
        return f"found {show(str(path))}, which cannot be followed: {error}"
    if root in target.parents:
        return ""
    parts = [part for part in (*reversed(path.parents), path) if folder in part.parents and part.is_symlink()]
    link = next((part for part in parts if root not in part.resolve().parents), None)
    name = show(os.path.relpath(path, folder))
    if link is None:
        return f"found {name}, expected a path inside {folder}"
    way = show(os.path.relpath(link, folder))
    return (
        f"found {name}, which leads out of {folder} by the link {way} to {show(os.readlink(link))}, expected a path "
        f"inside: put a copy there, or list the folder of the videos itself"
    )


def read_sidecars(item: Listed) -> dict[str, bytes]:
    """Return the content of the files beside a video, by extension."""
    try:
        return {ending[1:]: read_bounded(path) for ending, path in item.beside.items()}
    except OSError as error:
        raise InputError("bad-sidecar", f"found a file beside it that cannot be read: {show(str(error))}") from error


def read_bounded(path: Path) -> bytes:
    """Return the content of a file; a file that is too large is cut off one byte after the limit."""
    with path.open("rb") as file:
        return file.read(TEXT_LIMIT + 1)


def parse_video(name: str, members: Mapping[str, bytes], licence: str, followed: bool = False) -> ClipRequest:
    """Return the request of a video and of what lies beside it."""
    try:
        notes, texts = read_notes(members), read_texts(members)
    except CaptionError as error:
        raise InputError("bad-text", str(error)) from error
    except SidecarError as error:
        raise InputError("bad-sidecar", str(error)) from error
    captions = tuple(Caption(caption.text, caption.origin or "sidecar") for caption in texts)
    omitted: list[str] = []
    licence = licence_of(next((notes[field] for field in LICENCES if notes.get(field)), None), licence, omitted)
    rest: dict[str, Any] = {field: value for field, value in notes.items() if field not in CAPTIONS + LICENCES}
    if depth(rest) > MAX_DEPTH:
        raise InputError("bad-sidecar", f"found nested lists over {MAX_DEPTH} deep, expected fewer")
    said = {"captions": captions, "licence": licence, "notes": rest, "origin": "sidecar"}
    return ClipRequest(Place(name), checked_path(name), **said, omitted=tuple(omitted), followed=followed)
