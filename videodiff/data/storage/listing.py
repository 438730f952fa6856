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
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".qoi", ".ppm", ".pgm")
PICTURES += (".pbm", ".pam", ".jpe", ".jfif", *MOVING)
# What may say something of the video beside it.
SIDECARS = (".txt", ".json", ".csv")

PACKED_TARS = (".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".tar.lz4", ".tgz", ".txz", ".tbz", ".tbz2", ".tzst")
COMPRESSED = re.compile(r"\.((tar\.)?(gz|xz|bz2|zst|lz4|z)|tgz|txz|tbz2?|tzst|zip|rar|7z)", re.IGNORECASE)
# What this project writes into folders.
OURS = {".work", ".cache", ".videodiff.lock", "manifest.parquet", "scores.parquet", "words.txt"}
OURS |= {"unusable.jsonl", "rejected.jsonl", "failed.jsonl", "summary.json", "report.html"}
HIDDEN, LEFT, LINKED, FOLDER, NONE = "hidden", "of videodiff", "linked folder read already", "folder", "no ending"


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
    stem, _, last = name.rpartition(".")
    if not stem or not (last.isalnum() and last.isascii()) or len(last) > 11:
        return ""
    if len(stem) > 4 and stem.lower().endswith(".tar") and COMPRESSED.fullmatch(f".{last}"):
        return name[len(stem) - 4 :]
    return f".{last}"


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
        prefix = "" if folder == self.folder else f"{folder.relative_to(self.folder).as_posix()}/"
        try:
            with os.scandir(folder) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise
            return [Fault(prefix, f"found a folder that cannot be read: {error.strerror}")]
        found, beside, sidecars, videos = [], defaultdict(dict), [], set()
        for entry in entries:
            name, ours = entry.name, is_ours(entry.name)
            if ours or name.startswith("."):
                self.passed[LEFT if ours else HIDDEN] += 1
                continue
            kind, ending = is_kind(entry), ending_of(name)
            lower, stem = ending.lower(), composed(name[: len(name) - len(ending)])
            if kind == "folder":
                found += [Path(entry.path)] * self._enter(entry)
            elif lower in self.endings and kind != "file":
                found.append(Fault(prefix + name, kind))
            elif lower in self.endings:
                picture = lower in PICTURES
                videos.update([stem] * (not picture))
                found.append(Listed(Path(entry.path), prefix + name, beside[stem], picture))
            elif lower in self.beside and kind == "file":
                sidecars.append((stem, ending, entry.path))
            elif lower in self.beside:
                self.passed[f"{ending} that cannot be read"] += 1
            else:
                self.passed[ending or NONE] += 1
        for stem, ending, path in sidecars:
            if stem not in beside:
                self.passed[f"{ending} without a video"] += 1
            elif ending.lower() in beside[stem]:
                self.passed[f"{ending} beside another"] += 1
            else:
                beside[stem][ending.lower()] = Path(path)
        return [settle(item, videos) if isinstance(item, Listed) and item.preview else item for item in found]

    def _enter(self, entry: os.DirEntry) -> bool:
        """Tell whether a folder is to be read, and count it where it is not."""
        if not self.deep:
            self.passed[FOLDER] += 1
            return False
        known = identity(entry.stat())
        # Some network file systems number nothing.
        seen = known in self.seen and known[1]
        if seen or (entry.is_symlink() and self._comes_anyway(Path(entry.path).resolve())):
            self.passed[LINKED] += 1
            return False
        self.seen.add(known)
        return True

    def _comes_anyway(self, target: Path) -> bool:
        """Tell whether a folder is read without the link to it, or holds all that is read."""
        if self.root in (target, *target.parents):
            return not any(part.startswith(".") for part in target.relative_to(self.root).parts)
        return target in self.root.parents


def settle(picture: Listed, videos: Collection[str]) -> Listed:
    """Return a picture, which is a preview only where one of these stems of videos is its own."""
    name = picture.path.name
    return picture._replace(preview=composed(name.removesuffix(ending_of(name))) in videos)


def is_ours(name: str) -> bool:
    """Tell whether this project writes files of this name, also such as a process that was killed leaves."""
    return name in OURS or (name.startswith(".") and name.endswith(".partial"))


def identity(stat: os.stat_result) -> tuple[int, int]:
    """Return what tells a file from all others of a machine."""
    return stat.st_dev, stat.st_ino


def composed(stem: str) -> str:
    """Return a name with letters and their accents composed: systems differ in how they write them."""
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)


def is_kind(entry: os.DirEntry) -> str:
    """Return `folder`, `file`, or what an entry is instead."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        if entry.is_symlink():
            return f"found a link to {os.readlink(entry.path)!r}, which does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "found a device, pipe or socket, expected a plain file"
