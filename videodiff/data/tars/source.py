"""Stream samples from tars without a manifest: webdataset's pipeline, each tar read once from start to end.

The library draws tars, splits them between readers, opens files and commands, groups members by key and shuffles.
Our own filter `Members` replaces its `tar_file_expander`, which believes any size in a header (a sparse file of
terabytes) and stops at a damaged header without an error. A problem with a tar or a sample travels in the stream as a
`Fault`, because the process that reads is often not the process that reports.
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
from videodiff.words import count_text

PIPE = "pipe:"
# Extensions of tars that Python reads; they may be compressed, because a stream never seeks.
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
DAMAGE = (tarfile.TarError, ValueError, OSError, EOFError, zlib.error, lzma.LZMAError)
# Samples that a reader prefetches, and samples in the shuffle buffer before the first one is drawn.
AHEAD, FIRST = 4, 100


class Raw(NamedTuple):
    """A sample as it lies in a tar: epoch, index of the tar in the list, its index in the tar, files by extension."""

    epoch: int
    tar: int
    index: int
    key: str
    members: dict[str, bytes]


class Fault(NamedTuple):
    """Something that cannot be used, and why.

    Without a key the rest of the tar is lost, with a key that sample. With a `kind` only one member of the tar is
    lost; such faults are counted by kind.
    """

    tar: str
    key: str
    reason: str
    kind: str | None = None


class End(NamedTuple):
    """A tar was read to its end and gave `samples` samples; some may follow later, from the shuffle buffer."""

    epoch: int
    tar: int
    samples: int


Item = Raw | Fault | End


def find_tars(urls: str | Sequence[str], pipes: bool = False, where: str = "data.urls") -> list[str]:
    """Return the tars that a folder, a pattern (*, {000..123}), a URL, a command `pipe:...`, or a list stands for.

    A command is an error unless `pipes` is true. A folder with a manifest is an error too: `data=folder` reads it in
    an exact order and with an exact resume.
    """
    found = []
    for pattern in [urls] if isinstance(urls, str) else urls:
        for name in expand_braces(pattern):
            found += tars_at(name, pipes, where)
    if not found:
        raise ValueError(f"{where}: found no tar, expected at least one")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern with braces stands for; unbalanced braces are taken literally."""
    if os.path.lexists(pattern):
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError:
        return [pattern]


def tars_at(name: str, pipes: bool, where: str) -> list[str]:
    """Return the tars of one name without braces; tars on disk as absolute paths."""
    if name.startswith(PIPE):
        if not pipes:
            raise ValueError(
                f"{where}: found {name!r}, a command for a shell, expected data.pipes=true on this command line, which "
                "allows it to run"
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
            raise ValueError(f"{where}: {path}: found another extension, expected one of {', '.join(TARS)}")
    return [os.path.abspath(path) for path in names]


def tars_in(folder: Path, where: str) -> list[str]:
    """Return the tars of a folder, in the order of their names."""
    if (folder / NAME).is_file():
        raise ValueError(
            f"{where}: {folder}: found a dataset with a manifest, expected tars without one: data=folder "
            f"data.root={folder} gives each sample once per epoch and resumes bit by bit"
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
    """Return the name of a tar for messages: a URL without secrets, only the start of a command."""
    if tar.startswith(PIPE):
        return tar if len(tar) <= 60 else f"{tar[:57]}..."
    return bare_url(tar) if "://" in tar else tar


class Pieces(io.RawIOBase):
    """A file at a URL, read once from start to end in large ranges; a range that fails is tried again."""

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
    """Open a URL for webdataset with this project's own reader: hosts checked, with retries and timeouts."""
    return io.BufferedReader(Pieces(Url(url)))


# The library would start curl or gsutil for some of these schemes, and does not know the others.
gopen_schemes.update(dict.fromkeys(CREDENTIALS, open_url))


@dataclass
class Notes:
    """Faults that the filters of one pipeline report, and the number of tars without a sample since the last sample."""

    pending: list[Fault] = field(default_factory=list)
    last: Fault | None = None
    barren: int = 0

    def report(self, fault: Fault) -> None:
        """Keep a fault; it is passed on with the next sample."""
        self.pending.append(fault)
        self.last = fault

    def drain(self) -> list[Fault]:
        """Return the faults since the last call."""
        found, self.pending = self.pending, []
        return found


@dataclass(frozen=True)
class Source:
    """How tars are drawn: each once per epoch in a shuffled order, or at random with replacement if `resampled`.

    Each reader mixes its samples in a buffer of `shuffle` samples. A rank of `world` takes every world-th tar, and its
    readers share these. Epochs follow one another without a gap, so ranks may have different numbers of tars. `start`
    is the first epoch, `done` lists tars per epoch that are left out. Seeds depend on rank, reader and `salt`.
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
        """Return webdataset's pipeline of this source; it never ends."""
        notes = Notes()
        if self.resampled:
            numbers = list(map(str, range(len(self.tars))))
            drawn = webdataset.ResampledShards(
                numbers, seed=self.seed, deterministic=True, worker_seed=self.reader_seed
            )
            filters = [drawn, self.occurrences]
        else:
            # The library's split by node asks torch.distributed, but a reader process belongs to no process group.
            filters = [self.epochs, self.of_rank, webdataset.split_by_worker]
        filters += [Fertile(notes, 2 * len(self.tars) + 2), *reading(notes)]
        return webdataset.DataPipeline(*filters, self.mixed if self.shuffle > 1 else None)

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Yield the tars of all epochs, one epoch after the other."""
        done, everything = dict(self.done), range(len(self.tars))
        for epoch in itertools.count(self.start):
            order = permute(everything, len(self.tars), absorb(self.seed, epoch)).tolist()
            yield from (self.entry(epoch, tar) for tar in order if tar not in done.get(epoch, ()))

    def of_rank(self, tars: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Return the share of this rank."""
        return itertools.islice(tars, self.rank, None, self.world)

    def occurrences(self, drawn: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Give each draw a number that is unique over all ranks and readers: it seeds the draw's windows."""
        _, readers = reader_of()
        for count, entry in enumerate(drawn):
            yield self.entry((count * self.world + self.rank) * readers + reader_of()[0], int(entry["url"]))

    def entry(self, epoch: int, tar: int) -> dict[str, Any]:
        """Return a tar in the form that the library's opener takes."""
        return {"url": self.tars[tar], "epoch": epoch, "tar": tar}

    def reader_seed(self) -> int:
        """Return a seed that differs between all readers of all ranks."""
        return int(absorb(self.salt, self.rank, reader_of()[0]) >> 33)

    def mixed(self, items: Iterator[Item]) -> Iterator[Item]:
        """Shuffle samples in a buffer; samples of different epochs do not mix."""
        generator, epoch = random.Random(int(absorb(self.seed, self.salt, self.rank, reader_of()[0]))), 0

        def epoch_of(item: Item) -> int:
            nonlocal epoch
            # With `resampled` each draw counts as an epoch, and draws do mix.
            epoch = 0 if self.resampled else getattr(item, "epoch", epoch)
            return epoch

        for _, own in itertools.groupby(items, epoch_of):
            yield from webdataset.shuffle(self.shuffle, initial=min(self.shuffle, FIRST), rng=generator)(own)

    def items(self, readers: int = 0, wait: float = 0.0, context: Any = None) -> Iterator[Item]:
        """Yield what this rank reads, in `readers` processes (0: in this one); TimeoutError after `wait` seconds.

        Readers are workers of a DataLoader and only read bytes. They never decode, because a decoder may hang.
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
    """Exit when the parent process has ended: this reader may be blocked on a command that writes nothing."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def as_is(item: Item) -> Item:
    """Return an item unchanged."""
    return item


def reader_of() -> tuple[int, int]:
    """Return the index of this reader, and the number of readers of its rank."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def read_tars(tars: Sequence[str], numbers: Sequence[int]) -> Iterator[Item]:
    """Yield the samples of these tars in order, read in this process."""
    entries = [{"url": tars[number], "epoch": 0, "tar": number} for number in numbers]
    return iter(webdataset.DataPipeline([entries], *reading(Notes())))


def reading(notes: Notes) -> list[Any]:
    """Return the filters from tars to samples; faults come between the samples."""
    opener = webdataset.filters.pipelinefilter(url_opener)(handler=Unopened(notes))
    grouper = webdataset.filters.pipelinefilter(group_by_keys)(keys=split_name)
    return [opener, Members(notes), grouper, Numbered(notes)]


@dataclass
class Unopened:
    """An error handler for webdataset: report a tar that cannot be opened, and go on with the next one."""

    notes: Notes

    def __call__(self, error: Exception) -> bool:
        url = str(error.args[-1])
        self.notes.report(Fault(shown(url), "", f"cannot be opened: {reason_of(error, url)}"))
        return True


def reason_of(error: Exception, url: str) -> str:
    """Return the message of an error without the URL that the library appends."""
    error.args = error.args[:-1] if error.args[-1:] == (url,) else error.args
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclass
class Fertile:
    """Pass tars on; ValueError after `most` tars in a row without a sample, as the stream would never end."""

    notes: Notes
    most: int

    def __call__(self, tars: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for tar in tars:
            if self.notes.barren >= self.most:
                last = self.notes.last
                why = f"; the last fault: {last.tar}: {last.reason}" if last else ""
                raise ValueError(f"data.urls: found no sample in {count_text(self.most, 'tar')}, expected some{why}")
            self.notes.barren += 1
            yield tar


@dataclass
class Members:
    """Yield the members of open tars in the form that webdataset groups by key; only videos and sidecars have data."""

    notes: Notes

    def __call__(self, tars: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for tar in tars:
            name, stream, origin = shown(tar["url"]), Watched(tar["stream"]), (tar["epoch"], tar["tar"])
            try:
                yield from ({**member, "__url__": origin} for member in self.members(name, stream))
                # For a command this waits until it ends, and checks its exit status.
                stream.file.close()
            except DAMAGE as error:
                how = compression_of(stream.head)
                packed = f"; it is compressed by {how}" if how in ("zip", "zstd") else ""
                reason = f"cannot be read from here on: {type(error).__name__}: {error}{packed}"
                self.notes.report(Fault(name, "", reason))
            finally:
                with suppress(OSError):
                    stream.file.close()
            # A file without a name marks the end for `Numbered`; the empty dict marks it for the library's grouper.
            yield {"fname": "", "data": b"", "__url__": origin}
            yield {}

    def members(self, name: str, stream: Watched) -> Iterator[dict[str, Any]]:
        """Yield the members of one tar that samples can use."""
        last, seen, extensions = None, set(), set()
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=BoundedHeader) as tar:
            for member in tar:
                tar.members = []
                if is_noise(member):
                    continue
                if fault := fault_of(member):
                    self.notes.report(Fault(name, member.name, fault.reason, fault.kind))
                    continue
                key, extension = split_name(member.name)
                if extension.startswith("__"):
                    kept = "found an extension that webdataset reserves, expected one without __ at its start"
                    self.notes.report(Fault(name, member.name, kept, "reserved extension"))
                    continue
                if key != last:
                    if hash(key) in seen:
                        self.notes.report(Fault(name, key, APART))
                    seen.add(hash(key))
                    last, extensions = key, set()
                if extension in extensions:
                    again = f"found {member.name} again, expected each name once in a tar: the first is used"
                    self.notes.report(Fault(name, key, again, "name again"))
                    continue
                extensions.add(extension)
                wanted = extension in VIDEOS or extension in SIDECARS
                yield {"fname": member.name, "data": tar.extractfile(member).read() if wanted else b""}
            end = tar.offset
        stream.drain()
        # tarfile takes a damaged header for the end. A compressed tar has checksums of its own.
        if stream.filled > end and compression_of(stream.head) is None:
            raise tarfile.ReadError("found other bytes than a tar's header or its end")


@dataclass
class Numbered:
    """Turn webdataset's samples into `Raw`, numbered within their tar, with the faults of all filters in between."""

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
