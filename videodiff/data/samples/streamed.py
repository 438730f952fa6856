"""Samples of tars that have no manifest, in a stream: webdataset's pipeline, each tar read once from begin to end.

Of the library are the drawing of tars, the split between readers, the opening of files and commands, the grouping by
key and the shuffle. The members come by a stage of ours in place of its `tar_file_expander`, which takes what a header
claims for granted (a sparse file of terabytes) and ends at a damaged one without a word. What is wrong with a tar or a
sample travels in the stream as a `Fault`, as the process that reads may be another one than the one that tells of it.
"""

from __future__ import annotations

import glob
import io
import itertools
import lzma
import multiprocessing
import os
import random
import tarfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import webdataset
from braceexpand import UnbalancedBracesError, braceexpand
from torch.utils.data import DataLoader, get_worker_info
from webdataset.gopen import gopen_schemes
from webdataset.tariterators import group_by_keys, url_opener

from videodiff.data.order.arithmetic import absorb, permute
from videodiff.data.samples.manifest import NAME
from videodiff.data.samples.members import (
    APART,
    BoundedHeader,
    Watched,
    compression_of,
    fault_of,
    is_noise,
    split_name,
)
from videodiff.data.samples.shards import VIDEOS
from videodiff.data.samples.sidecars import SIDECARS
from videodiff.data.storage.address import bare_url
from videodiff.data.storage.listing import Fault as Unread
from videodiff.data.storage.listing import Passed, Scan
from videodiff.data.storage.remote import CREDENTIALS, Url

PIPE = "pipe:"
# Endings of tars that Python reads, compressed ones too, as nothing seeks in a stream.
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
DAMAGE = (tarfile.TarError, ValueError, OSError, EOFError, zlib.error, lzma.LZMAError)
# Samples that a reader has at hand when it is asked, and those in the buffer before the first one is drawn from it.
AHEAD, FIRST = 4, 100


class Raw(NamedTuple):
    """A sample as it lies in a tar: epoch, number of the tar in the list, its own there, its files by extension."""

    epoch: int
    tar: int
    number: int
    key: str
    members: dict[str, bytes]


class Fault(NamedTuple):
    """What cannot be used, and why: a tar from some place on, or the sample of this key; `small`: a member only."""

    tar: str
    key: str
    reason: str
    small: bool = False


class End(NamedTuple):
    """A tar was read to its end; it gave so many samples, of which some may still come, as they are shuffled."""

    epoch: int
    tar: int
    samples: int


Item = Raw | Fault | End


def find_tars(urls: str | Sequence[str], pipes: bool = False, where: str = "data.urls") -> list[str]:
    """Return the tars that are meant by a folder, a pattern (*, {000..123}), a URL, a command `pipe:...`, or a list.

    A command is an error unless `pipes`. So is a folder that has a manifest: its order and its resume are exact by it.
    """
    found = []
    for pattern in [urls] if isinstance(urls, str) else urls:
        for name in expand_braces(pattern):
            found += tars_at(name, pipes, where)
    if not found:
        raise ValueError(f"{where}: found no tar, expected at least one")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern with braces stands for; braces that do not close are signs like others."""
    if os.path.lexists(pattern):
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError:
        return [pattern]


def tars_at(name: str, pipes: bool, where: str) -> list[str]:
    """Return the tars of one name without braces, those on disk by their absolute paths."""
    if name.startswith(PIPE):
        if not pipes:
            raise ValueError(
                f"{where}: found {name!r}, a command for a shell, expected data.pipes=true beside it on this command "
                f"line to have it run"
            )
        return [name]
    if "://" in name:
        if (url := Url(name)).text.partition("?")[0].endswith("/"):
            raise ValueError(f"{where}: found the folder {url}, expected its tars: {url}name-{{000..123}}.tar")
        return [name]
    if os.path.isdir(name):
        return tars_in(Path(name), where)
    names = [name] if os.path.exists(name) else sorted(glob.glob(name))
    if not names:
        raise FileNotFoundError(f"{where}: {name}: found no such file or folder, expected tars")
    for path in names:
        if not os.path.isfile(path) or not path.lower().endswith(TARS):
            raise ValueError(f"{where}: {path}: found no tar by its name, expected one of {', '.join(TARS)}")
    return [os.path.abspath(path) for path in names]


def tars_in(folder: Path, where: str) -> list[str]:
    """Return the tars of a folder, in the order of their names."""
    if (folder / NAME).is_file():
        raise ValueError(
            f"{where}: {folder}: found a dataset with a manifest, expected tars without one: data=folder "
            f"data.root={folder} has each sample once an epoch and resumes to the bit"
        )
    passed = Passed()
    found = list(Scan(folder, set(TARS), passed, deep=False))
    for item in found:
        if isinstance(item, Unread):
            raise ValueError(f"{where}: {folder / item.name}: {item.detail}")
    if not found:
        beside = f"; there are {passed}" if passed else ""
        raise FileNotFoundError(f"{where}: {folder}: found no tar in it, expected {', '.join(TARS[:3])}, ...{beside}")
    return [os.path.abspath(item.path) for item in found]


def shown(tar: str) -> str:
    """Return the name of a tar as it may be told: a URL without secrets, of a command its begin."""
    if tar.startswith(PIPE):
        return tar if len(tar) <= 60 else f"{tar[:57]}..."
    return bare_url(tar) if "://" in tar else tar


class Pieces(io.RawIOBase):
    """A file at a URL, read once from begin to end by large ranges, each of which is asked for again where it fails."""

    def __init__(self, url: Url) -> None:
        self.pieces, self.left = url.pieces(), memoryview(b"")
        self.left = memoryview(next(self.pieces))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not len(self.left):
            piece = next(self.pieces, None)
            if piece is None:
                return 0
            self.left = memoryview(piece)
        size = min(len(buffer), len(self.left))
        buffer[:size], self.left = self.left[:size], self.left[size:]
        return size


def open_url(url: str, mode: str = "rb", bufsize: int = -1) -> io.BufferedReader:
    """Open a URL for webdataset as this project reads URLs: hosts checked, asked again where they fail, in time."""
    return io.BufferedReader(Pieces(Url(url)))


# The library would start curl or gsutil for some of them, and knows nothing of the others.
gopen_schemes.update(dict.fromkeys(CREDENTIALS, open_url))


@dataclass
class Notes:
    """What the stages of one pipeline have to tell beside samples, and how many tars gave none since the last one."""

    told: list[Fault] = field(default_factory=list)
    last: Fault | None = None
    barren: int = 0

    def tell(self, fault: Fault) -> None:
        """Note a fault, to be passed on with the next sample."""
        self.told.append(fault)
        self.last = fault

    def drain(self) -> list[Fault]:
        """Return what was told since, once."""
        found, self.told = self.told, []
        return found


@dataclass(frozen=True)
class Source:
    """How tars are drawn: each once an epoch in an order that the epoch decides, or with `resampled` any at any time.

    `shuffle` samples of a reader are mixed in a buffer. A rank of `world` takes every world-th tar, and of these each
    of its readers its share; epochs follow one another without a gap, so ranks may have uneven numbers of tars. `done`
    are tars of an epoch that are left out, `start` the epoch to begin with. Seeds are by rank, reader and `salt`.
    """

    tars: tuple[str, ...]
    seed: int = 0
    shuffle: int = 0
    resampled: bool = False
    rank: int = 0
    world: int = 1
    start: int = 0
    done: tuple[tuple[int, frozenset[int]], ...] = ()
    salt: int = 0

    def pipeline(self) -> webdataset.DataPipeline:
        """Return webdataset's pipeline of this source, endless."""
        notes = Notes()
        if self.resampled:
            numbers = list(map(str, range(len(self.tars))))
            drawn = webdataset.ResampledShards(numbers, seed=self.seed, deterministic=True, worker_seed=self.place)
            stages = [drawn, self.occurrences]
        else:
            # The library's own split by node asks the process, and that of a reader belongs to no group.
            stages = [self.epochs, self.of_rank, webdataset.split_by_worker]
        stages += [Fertile(notes, 2 * len(self.tars) + 2), *reading(notes)]
        return webdataset.DataPipeline(*stages, self.mixed if self.shuffle > 1 else None)

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Yield the tars of one epoch after the other."""
        done, everything = dict(self.done), range(len(self.tars))
        for epoch in itertools.count(self.start):
            order = permute(everything, len(self.tars), absorb(self.seed, epoch)).tolist()
            yield from (self.entry(epoch, tar) for tar in order if tar not in done.get(epoch, ()))

    def of_rank(self, tars: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Return the share of this rank."""
        return itertools.islice(tars, self.rank, None, self.world)

    def occurrences(self, drawn: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Number the draws, no two of all ranks and readers alike: each has windows of its own."""
        _, readers = reader_of()
        for count, entry in enumerate(drawn):
            yield self.entry((count * self.world + self.rank) * readers + reader_of()[0], int(entry["url"]))

    def entry(self, epoch: int, tar: int) -> dict[str, Any]:
        """Return a tar as the library's opener takes it."""
        return {"url": self.tars[tar], "epoch": epoch, "tar": tar}

    def place(self) -> int:
        """Return a seed that no other reader of any rank has."""
        return int(absorb(self.salt, self.rank, reader_of()[0]) >> 33)

    def mixed(self, items: Iterator[Item]) -> Iterator[Item]:
        """Mix samples in a buffer, those of one epoch among themselves."""
        generator, epoch = random.Random(int(absorb(self.seed, self.salt, self.rank, reader_of()[0]))), 0

        def epoch_of(item: Item) -> int:
            nonlocal epoch
            # A draw is an epoch of its own where tars are drawn again and again.
            epoch = 0 if self.resampled else getattr(item, "epoch", epoch)
            return epoch

        for _, own in itertools.groupby(items, epoch_of):
            yield from webdataset.shuffle(self.shuffle, initial=min(self.shuffle, FIRST), rng=generator)(own)

    def items(self, readers: int = 0, wait: float = 0.0, context: Any = None) -> Iterator[Item]:
        """Yield what this rank reads, by so many processes (0: this one); each item has to come within `wait` seconds.

        Readers are workers of a DataLoader: they only read bytes. Whatever decodes may hang, and is none of them.
        """
        how = {"prefetch_factor": AHEAD, "timeout": wait, "multiprocessing_context": context} if readers else {}
        how |= {"worker_init_fn": end_with_parent} if readers else {}
        loader = DataLoader(self.pipeline(), batch_size=None, num_workers=readers, collate_fn=as_is, **how)
        try:
            yield from loader
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            first = shown(self.tars[0])
            raise TimeoutError(
                f"data.urls: found no sample within {wait:g} s, expected one (data.wait); the first of "
                f"{len(self.tars)} tars is {first}"
            ) from error


def end_with_parent(reader: int) -> None:
    """End this reader when the process that started it is gone: it may wait for a command that says nothing."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def as_is(item: Item) -> Item:
    """Return what a reader has read."""
    return item


def reader_of() -> tuple[int, int]:
    """Return the number of this reader, and how many its rank has."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def read_tars(tars: Sequence[str], numbers: Sequence[int]) -> Iterator[Item]:
    """Yield the samples of these tars in order, read in this process."""
    entries = [{"url": tars[number], "epoch": 0, "tar": number} for number in numbers]
    return iter(webdataset.DataPipeline([entries], *reading(Notes())))


def reading(notes: Notes) -> list[Any]:
    """Return the stages from tars to samples; what they have to tell comes among the samples."""
    opener = webdataset.filters.pipelinefilter(url_opener)(handler=Unopened(notes))
    grouper = webdataset.filters.pipelinefilter(group_by_keys)(keys=split_name)
    return [opener, Members(notes), grouper, Numbered(notes)]


@dataclass
class Unopened:
    """A handler of webdataset: notes a tar that cannot be opened, and goes on with the next one."""

    notes: Notes

    def __call__(self, error: Exception) -> bool:
        url = str(error.args[-1])
        self.notes.tell(Fault(shown(url), "", f"cannot be opened: {reason_of(error, url)}"))
        return True


def reason_of(error: Exception, url: str) -> str:
    """Return what went wrong, without what the library adds to an error."""
    error.args = error.args[:-1] if error.args[-1:] == (url,) else error.args
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclass
class Fertile:
    """Pass tars on until `most` of them in a row gave no sample: nobody would ever get one."""

    notes: Notes
    most: int

    def __call__(self, tars: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for tar in tars:
            if self.notes.barren >= self.most:
                last = self.notes.last
                why = f"; the last fault: {last.tar}: {last.reason}" if last else ""
                raise ValueError(f"data.urls: found no sample in {self.most} tars, expected some{why}")
            self.notes.barren += 1
            yield tar


@dataclass
class Members:
    """From open tars to their members, with the content of videos and sidecars, as webdataset groups them by key."""

    notes: Notes

    def __call__(self, tars: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for tar in tars:
            name, stream, origin = shown(tar["url"]), Watched(tar["stream"]), (tar["epoch"], tar["tar"])
            try:
                yield from ({**member, "__url__": origin} for member in self.members(name, stream))
                # Of a command this waits for its end, and looks at how it ended.
                stream.file.close()
            except DAMAGE as error:
                how = compression_of(stream.head)
                packed = f"; it is compressed by {how}" if how in ("zip", "zstd") else ""
                reason = f"cannot be read from here on: {type(error).__name__}: {error}{packed}"
                self.notes.tell(Fault(name, "", reason))
            finally:
                with suppress(OSError):
                    stream.file.close()
            # A file without a name, and then what the library takes for the end of a tar.
            yield {"fname": "", "data": b"", "__url__": origin}
            yield {}

    def members(self, name: str, stream: Watched) -> Iterator[dict[str, Any]]:
        """Yield the members of a tar that can belong to a sample."""
        last, seen, extensions = None, set(), set()
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=BoundedHeader) as tar:
            for member in tar:
                tar.members = []
                if is_noise(member):
                    continue
                if fault := fault_of(member):
                    self.notes.tell(Fault(name, member.name, fault, small=True))
                    continue
                key, extension = split_name(member.name)
                if extension.startswith("__"):
                    kept = "found an ending that webdataset keeps for itself, expected another one"
                    self.notes.tell(Fault(name, member.name, kept, small=True))
                    continue
                if key != last:
                    if hash(key) in seen:
                        self.notes.tell(Fault(name, key, APART))
                    seen.add(hash(key))
                    last, extensions = key, set()
                if extension in extensions:
                    again = f"found {member.name} again, expected each name once in a tar: the first is used"
                    self.notes.tell(Fault(name, key, again, small=True))
                    continue
                extensions.add(extension)
                wanted = extension in VIDEOS or extension in SIDECARS
                yield {"fname": member.name, "data": tar.extractfile(member).read() if wanted else b""}
            end = tar.offset
        stream.drain()
        # To tarfile a damaged header is the end. Where the tar is compressed its own sums tell.
        if stream.filled > end and compression_of(stream.head) is None:
            raise tarfile.ReadError("found something else than a tar's header or its end")


@dataclass
class Numbered:
    """From webdataset's samples to ours, numbered in their tar, and what the stages have told in between."""

    notes: Notes

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[Item]:
        counts: Counter[tuple[int, int]] = Counter()
        for sample in samples:
            origin = sample["__url__"]
            if sample["__key__"] == "":
                yield from self.notes.drain()
                yield End(*origin, counts.pop(origin, 0))
                continue
            self.notes.barren = 0
            members = {name: data for name, data in sample.items() if not name.startswith("__")}
            yield Raw(*origin, counts[origin], sample["__key__"], members)
            counts[origin] += 1
            yield from self.notes.drain()
        yield from self.notes.drain()
