"""Takedown: clips and sources that must never be in the dataset again, under any name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.books.work_folder import TAKEN, clip_file
from videodiff.data.storage.address import bare_url
from videodiff.data.storage.files import write_whole


def read_lines(path: str | Path) -> frozenset[str]:
    """Return the lines of a file of ids, names and sources; empty lines and those that begin with # do not count."""
    try:
        lines = {line.strip() for line in Path(path).read_text("utf-8-sig").split("\n")}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"takedown: {path} cannot be read: {error}") from error
    # Sources are stored without their secrets.
    return frozenset(bare_url(line) for line in lines if line and not line.startswith("#"))


def remember(work: Path, taken: frozenset[str]) -> frozenset[str]:
    """Add to the list of takedowns and return the whole list; nothing is ever removed from it."""
    path = work / TAKEN
    before = read_lines(path) if path.is_file() else frozenset()
    if not taken <= before:
        write_whole(path, "".join(f"{line}\n" for line in sorted(taken | before)).encode())
    return taken | before


def take_down(ids: Sequence[str], work: Path, forget: Callable[[str], None]) -> None:
    """Remove the files of clips and, with `forget`, what else is stored about them.

    The ids of the clips are stored first, so that another name or source does not bring them back.
    """
    remember(work, frozenset(ids))
    for id in ids:
        for ending in ("mp4", "m4a"):
            clip_file(work, id, ending).unlink(missing_ok=True)
        forget(id)
