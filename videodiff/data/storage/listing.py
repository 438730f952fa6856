"""Scan a folder: which files are taken, which sidecars lie beside them, and how many files are skipped, by ending."""

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
# Pictures that may move. Beside a video of the same name they count as its preview.
MOVING = (".gif", ".apng")
# Still pictures: to `pack` and `index` they are videos of one frame.
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".qoi", ".ppm", ".pgm")
PICTURES += (".pbm", ".pam", ".jpe", ".jfif", *MOVING)
# Endings of files that may describe the video beside them.
SIDECARS = (".txt", ".json", ".csv")
# Endings of tables, which may be compressed.
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")

PACKED_TARS = (".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".tar.lz4", ".tgz", ".txz", ".tbz", ".tbz2", ".tzst")
COMPRESSED = re.compile(r"\.((tar\.)?(gz|xz|bz2|lzma|zst|lz4|z)|tgz|txz|tbz2?|tzst|zip|rar|7z)", re.IGNORECASE)
# What this project writes into folders.
OURS = {".work", ".cache", ".videodiff.lock", "manifest.parquet", "scores.parquet", "words.txt"}
OURS |= {"unusable.jsonl", "rejected.jsonl", "failed.jsonl", "summary.json", "report.html"}
HIDDEN, LEFT, LINKED, FOLDER, NONE = "hidden", "of videodiff", "linked folder read already", "folder", "no ending"


class Listed(NamedTuple):
    """A file that is taken: its path, its name below the scanned folder, and the sidecars beside it by ending.

    `preview`: whether it is a picture beside a video of the same name.
    """

    path: Path
    name: str
    beside: dict[str, Path]
    preview: bool = False


class Fault(NamedTuple):
    """A wanted file, or a folder, that cannot be read: its name below the scanned folder, and what was found."""

    name: str
    detail: str


class Passed(Counter):
    """Number of files that were skipped, by ending or kind."""

    def __str__(self) -> str:
        """Return one line, the most frequent kind first, each with advice if there is any."""
        return ", ".join(f"{kind} {count:,}{advice(kind)}" for kind, count in self.most_common())


def advice(kind: str) -> str:
    """Return what a user can do about files of a kind, empty if nothing is known."""
    kind, beside = kind.lower(), kind.endswith(" without a video")
    if COMPRESSED.fullmatch(kind):
        return " (unpack it first)"
    if kind == ".txt without a video":
        return " (the captions of one video are in a file of its name, those of many in a table)"
    if kind == ".tar":
        return " (`videodiff index` and prep format=webdataset read tars)"
    if kind in PICTURES:
        return " (`videodiff pack` takes pictures)"
    if kind.startswith((".jsonl", ".parquet")) or (beside and kind.startswith(".csv")):
        return " (a table of captions is given as source= or captions=)"
    return " (an unfinished download)" if kind in (".part", ".crdownload", ".download") else ""


def ending_of(name: str) -> str:
    """Return the ending of a file's name as it is spelled, with the dot; empty if it has none."""
    stem, _, last = name.rpartition(".")
    if not stem or not (last.isalnum() and last.isascii()) or len(last) > 11:
        return ""
    inner = next((ending for ending in (".tar", *TABLES) if stem.lower().endswith(ending)), "")
    packed = inner and len(stem) > len(inner) and COMPRESSED.fullmatch(f".{last}")
    return name[len(stem) - len(inner) :] if packed else f".{last}"


class Scan:
    """Iterate over the files with some endings below a folder, in the order of their names: `Listed` and `Fault`.

    Case of endings is ignored. Links are followed, because the folder is the user's own. A linked folder is read once;
    it is not read if it contains the scanned folder or lies in it. `passed` counts the skipped files; the count is
    complete when the iterator ends. `deep`: also scan the folders in it. `apart`: a file that is neither given nor
    counted. Memory holds the names of a few folders.
    """

    def __init__(
        self,
        folder: Path,
        endings: Collection[str],
        passed: Passed,
        beside: Collection[str] = (),
        deep: bool = True,
        apart: Path | None = None,
    ) -> None:
        self.apart = apart
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
        """Return the entries of a folder; folders in it as paths."""
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
            if self.apart is not None and name == self.apart.name and self.apart.samefile(entry.path):
                continue
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
        """Return whether a folder should be read; count it if not."""
        if not self.deep:
            self.passed[FOLDER] += 1
            return False
        known = identity(entry.stat())
        # Some network file systems have no inode numbers.
        seen = known in self.seen and known[1]
        if seen or (entry.is_symlink() and self._comes_anyway(Path(entry.path).resolve())):
            self.passed[LINKED] += 1
            return False
        self.seen.add(known)
        return True

    def _comes_anyway(self, target: Path) -> bool:
        """Return whether a link's target is scanned anyway, or contains the scanned folder."""
        if self.root in (target, *target.parents):
            return not any(part.startswith(".") for part in target.relative_to(self.root).parts)
        return target in self.root.parents


def settle(picture: Listed, videos: Collection[str]) -> Listed:
    """Return a picture with `preview` set: whether a video has the same stem."""
    name = picture.path.name
    return picture._replace(preview=composed(name.removesuffix(ending_of(name))) in videos)


def is_ours(name: str) -> bool:
    """Return whether this project writes files of this name, including temporary files of killed processes."""
    return name in OURS or (name.startswith(".") and name.endswith(".partial"))


def identity(stat: os.stat_result) -> tuple[int, int]:
    """Return device and inode, which identify a file on this machine."""
    return stat.st_dev, stat.st_ino


def composed(stem: str) -> str:
    """Return a name in Unicode form NFC: systems store accents in different forms."""
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)


def is_kind(entry: os.DirEntry) -> str:
    """Return `folder`, `file`, or a message that says what else the entry is."""
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
