"""Tars written by anyone get a manifest: each is read once, from begin to end, and nothing of it touches the disk."""

from __future__ import annotations

import glob
import hashlib
import json
import multiprocessing
import os
import re
import signal
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from braceexpand import braceexpand

from videodiff.data.decode import decode, probe
from videodiff.data.files import owning, write_whole
from videodiff.data.manifest import NAME, Manifest, ManifestWriter, plain_name
from videodiff.data.remote import Url, place_of
from videodiff.data.shards import VIDEOS, WORDS, BoundedHeader, rank_words, read_captions, read_notes, video_of
from videodiff.text.words import split_words

UNUSABLE = "unusable.jsonl"
TEXT_LIMIT = 2**22
VIDEO_LIMIT = 2**31
LIMIT_S = 300.0


class Unusable(NamedTuple):
    """What of a tar is not in the manifest, and why."""

    shard: str
    offset: int
    name: str
    reason: str


class Indexed(NamedTuple):
    """What a tar holds: its entry in the list of shards, its rows, the words of its captions, and what is left out."""

    shard: dict[str, Any]
    rows: list[dict[str, Any]]
    words: Counter[str]
    unusable: list[Unusable]


class Sample(NamedTuple):
    """Neighbouring members with one key, those of `read_captions` and `VIDEOS` with their content."""

    key: str
    offset: int
    end: int
    members: dict[str, bytes]


def index_tars(
    tars: str | Sequence[str],
    out: str | Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Manifest, list[Unusable]]:
    """Write the manifest of tars, with words.txt and unusable.jsonl; return it and what it leaves out.

    `tars`: a folder, a pattern (* on disk, {000..123} also in a URL), or a list of such, all of one folder. The
    manifest comes beside tars on disk; that of remote ones into the folder `out`. `workers`: processes, None: one a
    core.
    """
    places = find_tars(tars)
    parent = places[0].parent
    root = Path(out) if out is not None else parent
    if isinstance(parent, Url) == (out is None) or (out is not None and isinstance(parent, Path)):
        raise ValueError(f"out: found {out}, expected a folder for tars at a URL and none for {parent}")
    with owning(root, "index"):
        if (root / NAME).exists():
            raise ValueError(f"{root / NAME}: found a manifest, expected none: remove it to index anew")
        unusable = write_index(root, places, workers, progress)
    return Manifest.load(root), unusable


def write_index(
    root: Path, places: Sequence[Path | Url], workers: int | None, progress: Callable[[int, int], None]
) -> list[Unusable]:
    """Write what `index_tars` leaves in a folder; return what is left out."""
    parent, words, unusable, usable = places[0].parent, Counter(), [], 0
    with ManifestWriter(root, shards_at=parent if isinstance(parent, Url) else None) as writer:
        for done, found in enumerate(index_all(places, workers), start=1):
            words.update(found.words)
            unusable += found.unusable
            if found.rows:
                writer.add(found.shard, found.rows)
                usable += len(found.rows)
            progress(done, len(places))
        write_whole(root / UNUSABLE, "".join(f"{json.dumps(entry._asdict())}\n" for entry in unusable).encode())
        if not usable:
            raise ValueError(f"{parent}: found no usable sample in {len(places)} tars: {root / UNUSABLE} tells why")
        write_whole(root / WORDS, rank_words(words))
    return unusable


def find_tars(tars: str | Sequence[str]) -> list[Path | Url]:
    """Return the tars that are meant, in the order of their names."""
    found = []
    for pattern in [tars] if isinstance(tars, str) else tars:
        for name in braceexpand(pattern):
            if "://" in name:
                found.append(place_of(name))
            elif Path(name).is_dir():
                found += Path(name).glob("*.tar")
            else:
                found += map(Path, glob.glob(name))
    if not found:
        raise FileNotFoundError(f"tars: found none at {tars}, expected a folder or a pattern that some match")
    folders = sorted({str(place.parent) for place in found})
    if len(folders) > 1 or len({place.name for place in found}) < len(found):
        raise ValueError(f"tars: found {len(found)} in {', '.join(folders)}, expected different ones of one folder")
    for place in found:
        plain_name(place.name)
    return sorted(found, key=lambda place: place.name)


def index_all(places: Sequence[Path | Url], workers: int | None) -> Iterator[Indexed]:
    """Yield what each tar holds, in order, read by several processes."""
    workers = min(workers or os.cpu_count() or 1, len(places))
    if workers == 1:
        yield from map(index_tar, places)
        return
    # No fork: neither FFmpeg nor open connections survive one.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = pool.map(partial(index_tar, limit=LIMIT_S), places)
        for place in places:
            try:
                yield next(results)
            except BrokenProcessPool as error:
                raise ValueError(
                    f"{place}: found that a process died, or was at a clip for over {LIMIT_S:g} s, which read this or "
                    f"one of the next {workers} tars, expected it to finish: leave the tar out"
                ) from error


def index_tar(place: Path | Url, limit: float = 0.0) -> Indexed:
    """Read one tar; a clip that takes over `limit` seconds ends the process, 0: none does."""
    rows, words, unusable, keys = [], Counter(), [], set()
    with Hashed(place) as source:
        try:
            with tarfile.open(fileobj=source, mode="r|", tarinfo=BoundedHeader) as tar:
                for found in read_samples(tar, place.name):
                    if isinstance(found, Sample):
                        # A decoder that hangs hears no handler: SIGALRM is left to the kernel, which kills.
                        signal.setitimer(signal.ITIMER_REAL, limit)
                        found = describe(found, place.name, keys)
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    if isinstance(found, Unusable):
                        unusable.append(found)
                        continue
                    row, captions = found
                    rows.append(row)
                    words.update(word for caption in captions for word in split_words(caption))
                end = tar.offset
        # A ValueError is of a number in a header.
        except (tarfile.TarError, ValueError) as error:
            end = 2**63
            unusable.append(Unusable(place.name, tar_end(rows), "", f"cannot be read from here on: {error}"))
        source.drain()
    # To tarfile a damaged header is the end.
    if source.filled > end:
        unusable.append(Unusable(place.name, end, "", "found something else than a tar's header or its end"))
    shard = {"name": place.name, "bytes": source.size, "samples": len(rows), "sha256": source.digest.hexdigest()}
    return Indexed(shard, rows, words, unusable)


def tar_end(rows: list[dict[str, Any]]) -> int:
    """Return where the last sample that could be read ends."""
    return rows[-1]["offset"] + rows[-1]["size"] if rows else 0


def read_samples(tar: tarfile.TarFile, shard: str) -> Iterator[Sample | Unusable]:
    """Yield neighbouring members with one key as a sample, and every member that can belong to none."""
    sample = None
    for member in tar:
        fault = fault_of(member)
        key, extension = split_name(member.name)
        if sample and (fault or key != sample.key or extension in sample.members):
            yield sample
            sample = None
        if fault is None:
            sample = sample or Sample(key, member.offset, 0, {})
            wanted = extension in (*VIDEOS, "txt", "json")
            sample.members[extension] = tar.extractfile(member).read() if wanted else b""
            sample = sample._replace(end=member.offset_data + -(-member.size // 512) * 512)
        elif not member.isdir():
            yield Unusable(shard, member.offset, member.name, fault)
    if sample:
        yield sample


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension: they part at the first dot of the file's name, as in webdataset."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def fault_of(member: tarfile.TarInfo) -> str | None:
    """Tell why a member cannot be used, None where it can."""
    key, extension = split_name(member.name)
    limit = TEXT_LIMIT if extension in ("txt", "json") else VIDEO_LIMIT
    if (
        member.name.startswith("/")
        or ".." in member.name.split("/")
        or re.search(r"[\\\x00-\x1f\ud800-\udfff]", member.name)
    ):
        return "found a path that leads out of its folder, is not UTF-8 or has control characters"
    if not member.isreg() or member.issparse():
        return "found a link, folder or special file, expected a plain one"
    if not extension or not key.rpartition("/")[2]:
        return "found no key and extension, expected <key>.<extension>"
    if member.size > limit:
        return f"found {member.size} bytes, expected at most {limit}"
    return None


def describe(sample: Sample, shard: str, keys: set[str]) -> tuple[dict[str, Any], list[str]] | Unusable:
    """Return the row of a sample and its captions."""
    try:
        if sample.key in keys:
            raise ValueError("found this key before, expected each once in a tar")
        video = sample.members.get(video_of(sample.members))
        if video is None:
            raise ValueError(f"found {', '.join(sample.members)}, expected one of {', '.join(VIDEOS)}")
        info, captions, notes = probe(video), read_captions(sample.members), read_notes(sample.members)
        decode(video, [0, info.frames // 3, 2 * info.frames // 3, info.frames - 1])
    except (ValueError, RecursionError) as error:
        return Unusable(shard, sample.offset, sample.key, str(error))
    keys.add(sample.key)
    row = {name: getattr(info, name) for name in ("width", "height", "frames", "fps", "duration")}
    row |= {"shard": shard, "key": sample.key, "offset": sample.offset, "size": sample.end - sample.offset}
    row |= {"source": text_of(notes, "source", "url"), "licence": text_of(notes, "licence", "license")}
    return row | {"captions": len(captions), "sha256": hashlib.sha256(video).hexdigest()}, captions


def text_of(notes: dict[str, Any], *names: str) -> str:
    """Return the first of these entries that is text, with ? for what is not Unicode."""
    text = next((notes[name] for name in names if isinstance(notes.get(name), str)), "")
    return text.encode(errors="replace").decode()


class Hashed:
    """A file that is read from begin to end: its size, its sha256, and where its last byte that is not 0 ends."""

    def __init__(self, place: Path | Url) -> None:
        self.file, self.size, self.filled, self.digest = place.open("rb"), 0, 0, hashlib.sha256()

    def __enter__(self) -> Hashed:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        if content := len(data.rstrip(b"\0")):
            self.filled = self.size + content
        self.size += len(data)
        return data

    def drain(self) -> None:
        """Read what is left."""
        while self.read(2**20):
            pass
