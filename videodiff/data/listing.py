"""One look at a folder: which files are taken, what lies beside them, and what is passed over, counted by ending."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

# The containers that the cutter opens.
VIDEOS = tuple(
    f".{ending}"
    for group in (
        ("mp4", "webm", "mkv", "mov", "avi", "m4v", "qt", "mk3d", "ts", "mts", "m2ts", "m2t", "mpg", "mpeg", "mpe"),
        ("mpv", "m1v", "m2v", "vob", "flv", "f4v", "wmv", "asf", "3gp", "3g2", "3gpp", "ogv", "ogm", "ogg", "mxf"),
        ("nut", "rm", "rmvb", "dv", "divx", "xvid", "wtv", "ivf", "obu", "h264", "264", "avc", "h265", "265", "hevc"),
        ("vc1", "y4m", "mjpeg", "mjpg"),
    )
    for ending in group
)
# Pictures that may move. Beside a video of the same name they are taken for its preview.
MOVING = (".gif", ".apng")
# Still pictures: `pack` and `index` take them as videos of one frame.
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", *MOVING)
# What may say something of the video beside it.
SIDECARS = (".txt", ".json", ".csv")

PACKED_TARS = (".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".tar.lz4", ".tgz", ".txz", ".tbz", ".tbz2", ".tzst")
COMPRESSED = re.compile(r"\.(tar\.(gz|xz|bz2|zst|lz4|z)|tgz|txz|tbz2?|tzst|zip|rar|7z|gz|xz|bz2|zst)", re.IGNORECASE)
OURS = re.compile(r"\..*\.partial|\.work|\.cache|\.videodiff\.lock")
HIDDEN, LEFT, LINKED, FOLDER, NONE = "hidden", "left by videodiff", "linked folder read already", "folder", "no ending"


class Listed(NamedTuple):
    """A file that is taken, its name below the folder that was asked for, and the sidecars beside it by ending.

    preview: it is a picture beside a video of the same name.
    """

    path: Path
    name: str
    beside: dict[str, Path]
    preview: bool = False


class Fault(NamedTuple):
    """A file that would be taken, or a folder, that cannot be read: its name below the folder, and what was found."""

    name: str
    detail: str


class Passed(Counter):
    """How many files were passed over, by ending or by what they are."""

    def __str__(self) -> str:
        """Return one line, the most frequent first; what can be done about a kind stands behind it."""
        return ", ".join(f"{kind} {count:,}{advice(kind)}" for kind, count in self.most_common())


def advice(kind: str) -> str:
    """Return what a user may do about files of an ending, empty where nothing is known."""
    kind, beside = kind.lower(), kind.endswith(" without a video")
    if COMPRESSED.fullmatch(kind):
        return " (unpack it first)"
    if kind == ".tar":
        return " (`videodiff index` and prep kind=webdataset read tars)"
    if kind in PICTURES:
        return " (`videodiff pack` takes pictures)"
    if kind in (".jsonl", ".parquet") or (beside and kind.startswith(".csv")):
        return " (a table of captions is given as source= or captions=)"
    return " (a download that has not ended)" if kind in (".part", ".crdownload", ".download") else ""


def ending_of(name: str) -> str:
    """Return the ending of a file's name as it is spelled, with the dot; empty where it has none."""
    found = re.search(r"(?<=.)(\.tar\.(gz|xz|bz2|zst|lz4|z)|\.[a-z0-9]{1,11})$", name, re.IGNORECASE | re.DOTALL)
    return found[0] if found else ""


class Scan:
    """The files of some endings below a folder, in the order of their names: an iterator of `Listed` and `Fault`.

    Endings are compared without case. Links are followed, as the folder is the user's own; a linked folder is read
    once, and not where it holds the folder that is read or lies in it. What is passed over is counted in `passed`: it
    is complete when the iterator has ended. `deep`: also the folders in it. Memory holds the names of a few folders.
    """

    def __init__(
        self, folder: Path, endings: Collection[str], passed: Passed, beside: Collection[str] = (), deep: bool = True
    ) -> None:
        self.folder, self.endings, self.beside, self.deep = folder, frozenset(endings), frozenset(beside), deep
        self.passed, self.root, self.seen = passed, folder.resolve(), {identity(folder.stat())}

    def __iter__(self) -> Iterator[Listed | Fault]:
        waiting: list[Listed | Fault | Path] = [self.folder]
        while waiting:
            item = waiting.pop()
            if isinstance(item, Path):
                waiting += reversed(self._look(item))
            else:
                yield item

    def _look(self, folder: Path) -> list[Listed | Fault | Path]:
        """Return what a folder holds; a folder in it as its path."""
        try:
            with os.scandir(folder) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError as error:
            if folder == self.folder:
                raise
            return [Fault(f"{self._name(folder)}/", f"found a folder that cannot be read: {error.strerror}")]
        found, beside = list(filter(None, map(self._judge, entries))), defaultdict(dict)
        taken = {stem_of(item.path.name) for item in found if isinstance(item, Listed)}
        videos = {stem_of(item.path.name) for item in found if isinstance(item, Listed) and not is_picture(item.path)}
        for entry in entries:
            ending = ending_of(entry.name)
            if self._is_sidecar(entry, ending):
                files, kind = beside[stem_of(entry.name)], ending.lower()
                if stem_of(entry.name) not in taken:
                    self.passed[f"{ending} without a video"] += 1
                elif kind in files:
                    self.passed[f"{ending} beside another"] += 1
                else:
                    files[kind] = Path(entry.path)
        return [
            item._replace(beside=beside[stem], preview=is_picture(item.path) and stem in videos)
            if isinstance(item, Listed) and (stem := stem_of(item.path.name))
            else item
            for item in found
        ]

    def _is_sidecar(self, entry: os.DirEntry, ending: str) -> bool:
        hidden = entry.name.startswith(".")
        return not hidden and ending.lower() in self.beside and is_kind(entry) == "file"

    def _judge(self, entry: os.DirEntry) -> Listed | Fault | Path | None:
        """Return what an entry of a folder is, None where it is passed over or lies beside something."""
        name, ending, path = entry.name, ending_of(entry.name), Path(entry.path)
        if name.startswith("."):
            self.passed[LEFT if OURS.fullmatch(name) else HIDDEN] += 1
            return None
        kind = is_kind(entry)
        if kind == "folder":
            return path if self._enter(entry) else None
        if ending.lower() in self.endings:
            return Listed(path, self._name(path), {}) if kind == "file" else Fault(self._name(path), kind)
        if ending.lower() not in self.beside or kind != "file":
            self.passed[ending or NONE] += 1
        return None

    def _enter(self, entry: os.DirEntry) -> bool:
        """Tell whether a folder is to be read, and count it where it is not."""
        if not self.deep:
            self.passed[FOLDER] += 1
            return False
        if entry.is_symlink():
            target = Path(entry.path).resolve()
            if self.root in (target, *target.parents) or target in self.root.parents:
                self.passed[LINKED] += 1
                return False
        known = identity(entry.stat())
        # Some network file systems number nothing.
        if known in self.seen and known[1]:
            self.passed[LINKED] += 1
            return False
        self.seen.add(known)
        return True

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def is_picture(path: Path) -> bool:
    """Tell by its ending whether a file is a picture."""
    return ending_of(path.name).lower() in PICTURES


def identity(stat: os.stat_result) -> tuple[int, int]:
    """Return what tells a file from all others of a machine."""
    return stat.st_dev, stat.st_ino


def stem_of(name: str) -> str:
    """Return a name without its ending, letters and their accents composed: systems differ in how they write them."""
    return unicodedata.normalize("NFC", name.removesuffix(ending_of(name)))


def is_kind(entry: os.DirEntry) -> str:
    """Return `folder`, `file`, or what an entry is instead."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        if entry.is_symlink():
            return f"found a link to {os.readlink(entry.path)!r}, where nothing is"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "found a device, pipe or socket, expected a plain file"
