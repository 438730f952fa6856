"""Pack: turn captioned video into shards and a manifest, and report every lost clip by name and reason."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cut.animated import as_video, is_animated
from data_prep.cut.footage import FitPolicy, first_frame, fit_video
from data_prep.sources import Clip, Found, Rejection, find_clips
from data_prep.sources.clips import name_record
from videodiff.data.processes.pool import Lost, run_ordered
from videodiff.data.samples.shards import (
    ShardWriter,
    check_free,
    clip_sample,
    half_named,
    read_texts,
    remove_half_named,
)
from videodiff.data.samples.sidecars import SidecarError
from videodiff.data.storage.address import printable
from videodiff.data.storage.files import no_file, owning, write_whole
from videodiff.data.storage.listing import Passed
from videodiff.data.video.decode import DecodeError
from videodiff.machine import cores
from videodiff.words import count_text

REJECTED = "rejected.jsonl"
NO_CAPTION = "caption missing"


@dataclass
class PackReport:
    """What became of every entry of the source: `packed + len(rejected) == found`.

    `reencoded` maps the names of clips that were encoded again to the reason; `ignored_columns` are those of the table
    that nothing reads; `passed` counts the files of the folder that are no clips, `without_caption` packed clips.
    """

    root: Path
    found: int
    packed: int = 0
    reencoded: dict[str, str] = field(default_factory=dict)
    rejected: list[Rejection] = field(default_factory=list)
    ignored_columns: list[str] = field(default_factory=list)
    passed: Passed = field(default_factory=Passed)
    without_caption: int = 0
    seconds: float = 0.0

    @property
    def reasons(self) -> dict[str, int]:
        """The number of rejected clips for each class of reason."""
        return dict(Counter(rejection.reason for rejection in self.rejected).most_common())

    def why(self) -> list[str]:
        """Return the number of rejected clips for each class of reason as lines."""
        advice = {NO_CAPTION: " (require_caption=false packs such clips)"}
        return [f"{count:,} rejected: {reason}{advice.get(reason, '')}" for reason, count in self.reasons.items()]

    def nothing(self) -> str:
        """Return one line that says why no clip was packed, with a rejected clip of each class of reason."""
        first = {one.reason: f"{one.name}: {one.detail}" for one in reversed(self.rejected)}
        told = [
            f"{line}, the first one: {first[reason]}" for line, reason in zip(self.why(), self.reasons, strict=True)
        ]
        return printable("; ".join(told + [f"passed over: {self.passed}"] * bool(self.passed)))

    def format(self, shown: int = 10) -> str:
        """Return the report as lines, with the first rejected clips by name."""
        lines = [f"{self.packed:,} of {count_text(self.found, 'clip')} packed into {self.root} in {self.seconds:.1f} s"]
        lines += [f"{len(self.reencoded):,} encoded again"] * bool(self.reencoded)
        lines += self.why()
        lines += [printable(f"    {clip.name}: {clip.reason}: {clip.detail}") for clip in self.rejected[:shown]]
        lines += [f"    all in {self.root / REJECTED}"] * (len(self.rejected) > shown)
        lines += [f"{count_text(self.without_caption, 'clip has', 'clips have')} no caption"] * bool(
            self.without_caption
        )
        lines += [f"passed over: {self.passed}"] * bool(self.passed)
        lines += [f"columns not read: {', '.join(self.ignored_columns)}"] * bool(self.ignored_columns)
        return "\n".join(lines)


@dataclass(frozen=True)
class PackSource:
    """What to pack, see `find_clips`; require_caption: reject clips without a caption."""

    path: str | Path
    captions: str | Path | None = None
    video_column: str | None = None
    caption_column: str | None = None
    require_caption: bool = True


@dataclass(frozen=True)
class PackSettings:
    """All settings of `pack`.

    workers: processes, None for one a core; their number changes no byte. timeout: seconds for one clip.
    """

    source: PackSource
    out: Path
    fit: FitPolicy = field(default_factory=FitPolicy)
    shard_bytes: int = 256 * 2**20
    workers: int | None = None
    timeout: float = 300.0

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.timeout <= 0 or self.shard_bytes < 1:
            raise ValueError(
                f"pack: found workers={self.workers} timeout={self.timeout} shard_bytes={self.shard_bytes}, expected "
                "at least 1 or null, above 0, at least 1"
            )


class Packable(NamedTuple):
    """A clip that is ready for a shard: its members, its row, why it was encoded again (empty: it was not)."""

    members: dict[str, bytes]
    row: dict[str, Any]
    reencoded: str


def pack(settings: PackSettings, progress: Callable[[int, int], None] = lambda done, total: None) -> PackReport:
    """Pack a folder of video with captions beside them, or a table that names both, into a dataset.

    Every clip is decoded in full; `FitPolicy` says what stays as it is and what is encoded again. What cannot be used
    is listed in the report and in `rejected.jsonl` of the dataset. A clip that takes too long is one of these. A folder
    that holds a dataset is refused; what a killed call left there is removed.
    `progress` is called with clips done and clips in all.
    """
    start, source = time.perf_counter(), settings.source
    found = find_clips(source.path, source.captions, source.video_column, source.caption_column)
    report = PackReport(settings.out, len(found.clips) + len(found.rejected), ignored_columns=found.ignored)
    report.passed = found.passed
    report.rejected += found.rejected
    usable = captioned(found, report) if source.require_caption else found.clips
    left = half_named(settings.out)
    with owning(settings.out, "pack"):
        remove_half_named(settings.out, left)
        check_free(settings.out)
        pack_clips(usable, settings, report, progress)
    report.seconds = time.perf_counter() - start
    return report


def pack_clips(
    usable: list[Clip], settings: PackSettings, report: PackReport, progress: Callable[[int, int], None]
) -> None:
    """Write the shards of these clips and the list of rejected clips."""
    workers = settings.workers or cores()
    # The list comes before the dataset: a call that is killed between the two leaves no dataset without it.
    with ShardWriter(report.root, settings.shard_bytes) as writer, keeping(report):
        results = run_ordered(partial(prepare, policy=settings.fit), usable, workers, settings.timeout)
        for done, (clip, result) in enumerate(zip(usable, results, strict=True), 1):
            record(clip, result, writer, report)
            progress(done, len(usable))
        report.without_caption = writer.without_caption
        if not report.packed:
            raise ValueError(f"source: found no clip in {settings.source.path} that can be packed: {report.nothing()}")


@contextmanager
def keeping(report: PackReport) -> Iterator[None]:
    """Write the list of rejected clips at the end of the block, also after an error."""
    try:
        yield
    except BaseException as error:
        try:
            write_rejected(report)
        # Show the error that ended the work, not this one.
        except OSError as later:
            error.add_note(f"{REJECTED} could not be written: {later}")
        raise
    write_rejected(report)


def write_rejected(report: PackReport) -> None:
    """Write the list of rejected clips."""
    lines = "".join(json.dumps(asdict(rejection)) + "\n" for rejection in report.rejected)
    write_whole(report.root / REJECTED, lines.encode())


def captioned(found: Found, report: PackReport) -> list[Clip]:
    """Return the clips that have a caption and report the others."""
    for clip in found.clips:
        if not clip.captions:
            report.rejected.append(Rejection(clip.name, NO_CAPTION, "found no caption, or an empty one"))
    return [clip for clip in found.clips if clip.captions]


def prepare(clip: Clip, policy: FitPolicy) -> Packable | Rejection:
    """Return a clip as it goes into a shard, or why it is rejected."""
    try:
        if not clip.path.is_file():
            slashes = "; a path has / between its parts, not \\" if "\\" in clip.name else ""
            return Rejection(clip.name, "video missing", f"found {no_file(clip.path)}{slashes}")
        data = clip.path.read_bytes()
        data = as_video(data) if is_animated(data) else data
        notes = first_frame(data).notes
        if policy.hdr == "reject" and "transfer" in notes:
            return Rejection(clip.name, "hdr", f"found a picture of high dynamic range ({notes['transfer']})")
        fit = fit_video(data, policy)
    except DecodeError as error:
        return Rejection(clip.name, "video undecodable", str(error))
    except OSError as error:
        return Rejection(clip.name, "video unreadable", str(error))
    members, row = clip_sample(fit.video, fit.info, clip.captions, clip.source, clip.licence, clip.truth)
    origins = [text.origin for text in clip.texts]
    more = name_record(clip.name) | notes | ({"caption_origins": origins} if any(origins) else {})
    more |= {"deinterlaced": True} if fit.deinterlaced else {}
    members["json"] = json.dumps(json.loads(members["json"]) | more).encode()
    try:
        # Readable one by one, the files beside a video may hold more captions than one json may.
        read_texts(members)
    except SidecarError as error:
        return Rejection(clip.name, "caption unreadable", f"all captions together: {error}")
    return Packable(members, row, fit.reason)


def record(clip: Clip, result: Packable | Rejection | Lost, writer: ShardWriter, report: PackReport) -> None:
    """Write a prepared clip, or add it to the rejected ones."""
    if isinstance(result, Lost):
        result = Rejection(clip.name, f"video {result.reason}", result.detail)
    if isinstance(result, Rejection):
        report.rejected.append(result)
        return
    writer.add(clip.key, result.members, result.row)
    report.packed += 1
    if result.reencoded:
        report.reencoded[clip.name] = result.reencoded
