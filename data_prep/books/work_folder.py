"""The work folder: the names of the files in it, and how a file gets there whole."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from videodiff.data.storage.files import sync, write_beside

WORK = ".work"
LEDGER, PLAN, RATINGS, REPLIES = "ledger.sqlite", "plan.sqlite", "ratings.sqlite", "replies.sqlite"
SETTINGS, OVERRIDES, TAKEN = "settings.json", "overrides.yaml", "takedown.txt"
READING, PASSED = "reading.json", "passed_over.json"
CLIPS, VIDEOS = "clips", "videos"


def clip_file(work: Path, id: str, ending: str) -> Path:
    """Return the path of the file of a clip (mp4, m4a), or of the record of a request (json)."""
    return work / CLIPS / id[:3] / f"{id}.{ending}"


def read_clip(work: Path, id: str, ending: str, sha256: str) -> bytes:
    """Return the file of a clip; ValueError if it is not the one that was written."""
    path = clip_file(work, id, ending)
    data = path.read_bytes() if path.is_file() else None
    if data is None or hashlib.sha256(data).hexdigest() != sha256:
        found = "no file" if data is None else "other bytes than were written"
        raise ValueError(f"{path}: found {found}, expected a whole clip: restore it, or take {id} down")
    return data


class NotWritten(OSError):
    """A file that could not be written into the work folder: no clip of any video can be."""


def publish(path: Path, data: bytes) -> None:
    """Write a file whole, under a temporary name of this process alone.

    A machine of a cluster that was given up may still write the same clip; both write the same bytes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(write_beside(path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}"), data), path)
        sync(path.parent)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror, str(path)) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file, an empty one where there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}
