"""Make a manifest for tars that others wrote: each tar is read once, from start to end, and never unpacked to disk."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from braceexpand import braceexpand

from videodiff.data.processes.child import GRACE_S, TICK, Child, Gone
from videodiff.data.processes.pool import run_all
from videodiff.data.samples.manifest import NAME, Manifest, ManifestWriter, plain_name
from videodiff.data.samples.members import (
    APART,
    BoundedHeader,
    Watched,
    compression_of,
    fault_of,
    is_hidden,
    is_noise,
    one_video,
    split_name,
)
from videodiff.data.samples.shards import VIDEOS, WORDS, rank_words
from videodiff.data.samples.sidecars import SIDECARS, provenance, read_captions, read_notes
from videodiff.data.storage.files import owning, write_whole
from videodiff.data.storage.listing import Fault, Passed, Scan
from videodiff.data.storage.remote import Url, path_or_url
from videodiff.data.video.decode import decode, probe
from videodiff.machine import cores
from videodiff.words import count_text, split_words

UNUSABLE = "unusable.jsonl"
LIMIT_S = 300.0


class Unusable(NamedTuple):
    """A member or sample of a tar that the manifest leaves out, and why."""

    shard: str
    offset: int
    name: str
    reason: str

    def __str__(self) -> str:
        """Return one line that is safe to print: control characters in the name are escaped."""
        name = self.name[:200].encode("unicode_escape", "backslashreplace").decode()
        return f"{self.shard} at {self.offset}: " + f"{name}: " * bool(name) + self.reason


class Indexed(NamedTuple):
    """The result of reading one tar: its shard entry, its rows, the words of its captions, and what is left out."""

    shard: dict[str, Any]
    rows: list[dict[str, Any]]
    words: Counter[str]
    unusable: list[Unusable]
    passed: Passed


class Sample(NamedTuple):
    """Neighbouring members of a tar that share one key.

    `members` has the first file of each extension; only videos and sidecars have content. `again` has the names of
    files whose extension came before.
    """

    key: str
    offset: int
    end: int
    members: dict[str, bytes]
    again: list[str]


# The row of a sample and its captions, or why it cannot be used.
Described = tuple[dict[str, Any], list[str]] | Unusable
Describe = Callable[[Sample, str], Described]


def index_tars(
    tars: str | Sequence[str],
    out: str | Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    passed: Passed | None = None,
) -> tuple[Manifest, list[Unusable]]:
    """Write the manifest of tars, with words.txt and unusable.jsonl; return it and the list of what it leaves out.

    `tars`: a folder, a pattern (* on disk, {000..123} also in a URL), or a list of these, all in one folder. The
    manifest is written beside tars on disk, and into the folder `out` for tars at a URL. `workers`: number of
    processes, by default one per core; with 1 this process reads, and a hanging decoder hangs it. `passed` counts the
    files that were skipped.

    Where neighbouring files of a tar have the same name, the first one is used. A sample whose files do not lie side
    by side is left out, because a row states one offset and one size.
    """
    passed = Passed() if passed is None else passed
    places, faults = find_tars(tars, passed)
    parent = places[0].parent
    root = Path(out) if out is not None else parent
    if isinstance(parent, Url) == (out is None) or (out is not None and isinstance(parent, Path)):
        raise ValueError(f"out: found {out}, expected a folder for tars at a URL and none for {parent}")
    with owning(root, "index"):
        if (root / NAME).exists():
            raise ValueError(f"{root / NAME}: found a manifest, expected none: remove it to index anew")
        unusable = write_index(root, places, faults, workers, progress, passed)
    return Manifest.load(root), unusable


def write_index(
    root: Path,
    places: Sequence[Path | Url],
    faults: Sequence[Fault],
    workers: int | None,
    progress: Callable[[int, int], None],
    passed: Passed,
) -> list[Unusable]:
    """Write manifest, words.txt and unusable.jsonl into `root`; return what is left out."""
    parent, words, usable = places[0].parent, Counter(), 0
    unusable = [Unusable(fault.name, 0, "", fault.detail) for fault in faults]
    shards_at = parent if isinstance(parent, Url) else None
    with ManifestWriter(root, shards_at=shards_at) as writer, closing(index_all(places, workers)) as results:
        for done, found in enumerate(results, start=1):
            words.update(found.words)
            unusable += found.unusable
            passed.update(found.passed)
            if found.rows:
                writer.add(found.shard, found.rows)
                usable += len(found.rows)
            progress(done, len(places))
        write_whole(root / UNUSABLE, "".join(f"{json.dumps(entry._asdict())}\n" for entry in unusable).encode())
        if not usable:
            first = f"; the first: {unusable[0]}" if unusable else ""
            raise ValueError(
                f"{parent}: found no usable sample in {count_text(len(places), 'tar')}: {root / UNUSABLE} says "
                f"why{first}"
            )
        write_whole(root / WORDS, rank_words(words))
    return unusable


def find_tars(tars: str | Sequence[str], passed: Passed) -> tuple[list[Path | Url], list[Fault]]:
    """Return the tars that `tars` names, sorted by name, and the faults of tars that cannot be read."""
    found, missing = [], []
    for pattern in [tars] if isinstance(tars, str) else tars:
        # An existing path is taken literally: a folder may be called {1}, and a tar a[1].tar.
        for name in [pattern] if os.path.exists(pattern) else braceexpand(pattern):
            own = tars_at(name, passed)
            found += own
            missing += [name] * (not own)
    faults = [item for item in found if isinstance(item, Fault)]
    found = [item for item in found if not isinstance(item, Fault)]
    if not found:
        beside = f"; {faults[0].name}: {faults[0].detail}" if faults else f"; there are {passed}" if passed else ""
        raise FileNotFoundError(
            f"tars: found none at {tars}, expected a folder with .tar files or a pattern that matches some{beside}"
        )
    if missing:
        more = f" and {len(missing) - 1} more" * (len(missing) > 1)
        raise FileNotFoundError(f"tars: found none at {missing[0]}{more}, expected a tar for each name and pattern")
    folders = sorted({str(place.parent) for place in found})
    if len(folders) > 1 or len({place.name for place in found}) < len(found):
        raise ValueError(f"tars: found {len(found)} in {', '.join(folders)}, expected one folder and each tar once")
    for place in found:
        if isinstance(place, Url) and str(place) != place.text:
            raise ValueError(
                f"tars: found a secret in the URL {place}, expected none: the manifest stores the URL and is shared"
            )
        plain_name(place.name)
    return sorted(found, key=lambda place: place.name), faults


def tars_at(name: str, passed: Passed) -> list[Path | Url | Fault]:
    """Return the tars that one name stands for: a file, a URL, a folder, or a pattern."""
    if "://" in name:
        return [path_or_url(name)]
    if os.path.isdir(name):
        items = list(Scan(Path(name), {".tar"}, passed, deep=False))
        return [item if isinstance(item, Fault) else readable(item.path) for item in items]
    return [readable(Path(name))] if os.path.exists(name) else [readable(Path(found)) for found in glob.glob(name)]


def readable(path: Path) -> Path | Fault:
    """Return the path of a tar, or a fault if it cannot be read."""
    if not path.exists():
        return Fault(path.name, "found a link to a file which does not exist, expected a tar")
    return path if os.access(path, os.R_OK) else Fault(path.name, "cannot be read: Permission denied")


def index_all(places: Sequence[Path | Url], workers: int | None) -> Iterator[Indexed]:
    """Yield the contents of each tar, in order; several processes read."""
    if workers == 1:
        yield from map(index_tar, places)
        return
    function = partial(index_tar, describing=(describe, LIMIT_S))
    yield from run_all(function, places, workers or cores(), nests=True)


class Describer:
    """Describes samples in a process of its own: one that crashes, or takes over `limit` seconds, costs its sample."""

    def __init__(self, describe: Describe, limit: float) -> None:
        self.describe, self.limit, self.child = describe, limit, None

    def __call__(self, sample: Sample, shard: str) -> Described:
        if self.child is None:
            self.child = self.start()
        self.child.send((sample, shard))
        try:
            answer = self.answer()
        except Gone:
            answer = f"crashed: {self.child.end(GRACE_S)}"
            self.child = None
        if isinstance(answer, Exception):
            raise answer
        return Unusable(shard, sample.offset, sample.key, answer) if isinstance(answer, str) else answer

    def start(self) -> Child:
        """Return a process when it is ready: its imports do not count."""
        child = Child(serve, self.describe)
        try:
            child.receive()
        except Gone:
            raise RuntimeError(f"index: found a process that ended before its first clip: {child.end()}") from None
        return child

    def answer(self) -> Described | Exception | str:
        """Return what the process answers, or why it was killed."""
        begun = time.monotonic()
        while not self.child.connection.poll(max(min(TICK, self.limit - self.child.spent), 0.0)):
            if self.child.spent >= self.limit:
                self.child.end()
                self.child = None
                return f"timeout: took longer than {self.limit:g} s"
            now = time.monotonic()
            self.child.charge(now - begun)
            begun = now
        return self.child.receive()


def serve(connection: Connection, describe: Describe) -> None:
    """Describe samples until the other end closes."""
    connection.send(None)
    while True:
        try:
            answer = describe(*connection.recv())
        except EOFError:
            return
        except Exception as error:
            answer = error
        connection.send(answer)


# One for each process that reads tars, whatever their number.
describer = cache(Describer)


def index_tar(place: Path | Url, describing: tuple[Describe, float] | None = None) -> Indexed:
    """Read one tar; `describing`: what describes its samples in another process, and in how many seconds at most."""
    found, unusable, passed = Runs(place.name, describer(*describing) if describing else describe), [], Passed()
    with Hashed(place) as source:
        try:
            with tarfile.open(fileobj=source, mode="r|", tarinfo=BoundedHeader) as tar:
                for item in read_samples(tar, place.name, passed):
                    if isinstance(item, Unusable):
                        unusable.append(item)
                        continue
                    found.add(item)
                end = tar.offset
        # tarfile raises ValueError for a bad number in a header.
        except (tarfile.TarError, ValueError) as error:
            how = compression_of(source.head)
            reason = f"found a tar compressed by {how}, expected a plain one: uncompress it" if how else str(error)
            end = 2**63
            unusable.append(Unusable(place.name, found.end, "", f"cannot be read from here on: {reason}"))
        source.drain()
    # tarfile takes a damaged header for the end of the tar.
    if source.filled > end:
        unusable.append(Unusable(place.name, end, "", "found other bytes than a tar's header or its end"))
    kept, left_out = found.settle()
    rows = [row for row, _ in kept]
    words = Counter(word for _, captions in kept for caption in captions for word in split_words(caption))
    shard = {"name": place.name, "bytes": source.size, "samples": len(rows), "sha256": source.digest.hexdigest()}
    return Indexed(shard, rows, words, sorted(unusable + left_out, key=lambda entry: entry.offset), passed)


class Runs:
    """The samples of one tar; only its end shows which of them have all their members side by side."""

    def __init__(self, shard: str, describe: Describe) -> None:
        self.shard, self.describe, self.end = shard, describe, 0
        self.usable: dict[str, tuple[dict[str, Any], list[str]]] = {}
        self.seen: dict[str, tuple[int, frozenset[str]]] = {}
        self.apart: set[str] = set()
        self.unusable: list[Unusable] = []

    def add(self, sample: Sample) -> None:
        """Add a sample, or further members of a sample that was added before."""
        key, extensions = sample.key, frozenset(sample.members)
        offset, before = self.seen.setdefault(key, (sample.offset, extensions))
        again = sample.again
        if offset != sample.offset:
            again = [*map(f"{key}.{{}}".format, sorted(extensions)), *again]
            if extensions - before:
                self.apart.add(key)
        else:
            found = self.describe(sample, self.shard)
            if isinstance(found, Unusable):
                self.unusable.append(found)
            else:
                self.usable[key] = found
                self.end = sample.end
        if again:
            reason = f"found {' and '.join(again)} again, expected each name once in a tar: the first is used"
            self.unusable.append(Unusable(self.shard, sample.offset, key, reason))

    def settle(self) -> tuple[list[tuple[dict[str, Any], list[str]]], list[Unusable]]:
        """Return the rows with their captions, and what is left out."""
        apart = [Unusable(self.shard, self.seen[key][0], key, APART) for key in self.seen if key in self.apart]
        others = [entry for entry in self.unusable if entry.name not in self.apart]
        return [found for key, found in self.usable.items() if key not in self.apart], others + apart


def read_samples(tar: tarfile.TarFile, shard: str, passed: Passed) -> Iterator[Sample | Unusable]:
    """Yield neighbouring members with one key as a `Sample`, and each member that no sample can use as `Unusable`.

    Folders and hidden files may lie between the members of a sample.
    """
    sample = None
    for member in tar:
        if is_noise(member):
            if not member.isdir():
                passed["hidden in a tar"] += 1
            continue
        fault = fault_of(member)
        key, extension = split_name(member.name)
        if sample and (key != sample.key if fault is None else not is_hidden(member)):
            yield sample
            sample = None
        if fault is not None:
            yield Unusable(shard, member.offset, member.name, fault.reason)
            continue
        sample = sample or Sample(key, member.offset, 0, {}, [])
        sample = sample._replace(end=member.offset_data + -(-member.size // 512) * 512)
        if extension in sample.members:
            sample.again.append(member.name)
            continue
        wanted = extension in (*VIDEOS, *SIDECARS)
        sample.members[extension] = tar.extractfile(member).read() if wanted else b""
    if sample:
        yield sample


def describe(sample: Sample, shard: str) -> Described:
    """Return the row of a sample and its captions, or why the sample cannot be used."""
    try:
        video = sample.members[one_video(sample.members)]
        info, captions, notes = probe(video), read_captions(sample.members), read_notes(sample.members)
        decode(video, [0, info.frames // 3, 2 * info.frames // 3, info.frames - 1])
    except ValueError as error:
        return Unusable(shard, sample.offset, sample.key, str(error))
    row = {name: getattr(info, name) for name in ("width", "height", "frames", "fps", "duration")}
    row |= {"shard": shard, "key": sample.key, "offset": sample.offset, "size": sample.end - sample.offset}
    row |= provenance(notes)
    longest = max((len(split_words(caption)) for caption in captions), default=0)
    sums = {"captions": len(captions), "words": longest, "sha256": hashlib.sha256(video).hexdigest()}
    return row | sums, captions


class Hashed(Watched):
    """A file that is read from start to end, and its sha256."""

    def __init__(self, place: Path | Url) -> None:
        super().__init__(place.open("rb"))
        self.digest = hashlib.sha256()

    def __enter__(self) -> Hashed:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def read(self, size: int) -> bytes:
        data = super().read(size)
        self.digest.update(data)
        return data
