"""Pack: captioned video in, shards and a manifest out, and not one clip lost without its name and the reason."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.cut.animated import as_video, is_animated
from data_prep.cut.footage import first_shown, fit_video
from data_prep.engine.pool import Lost, run_ordered
from data_prep.sources import Clip, Found, Rejection, find_clips
from data_prep.sources.clips import name_record
from videodiff.data.samples.shards import ShardWriter, clip_sample
from videodiff.data.storage.address import printable
from videodiff.data.storage.files import owning, write_whole
from videodiff.data.storage.listing import Passed
from videodiff.data.video.decode import DecodeError

REJECTED = "rejected.jsonl"


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
        """How many clips were rejected for which class of reason."""
        return dict(Counter(rejection.reason for rejection in self.rejected).most_common())

    def format(self, shown: int = 10) -> str:
        """Return the report as lines, with the first rejected clips by name."""
        lines = [f"{self.packed:,} of {self.found:,} clips packed into {self.root} in {self.seconds:.1f} s"]
        lines += [f"{len(self.reencoded):,} encoded again"] * bool(self.reencoded)
        lines += [f"{count:,} rejected: {reason}" for reason, count in self.reasons.items()]
        lines += [printable(f"    {clip.name}: {clip.reason}: {clip.detail}") for clip in self.rejected[:shown]]
        lines += [f"    all in {self.root / REJECTED}"] * (len(self.rejected) > shown)
        lines += [f"{self.without_caption:,} clips have no caption"] * bool(self.without_caption)
        lines += [f"passed over: {self.passed}"] * bool(self.passed)
        lines += [f"columns not read: {', '.join(self.ignored_columns)}"] * bool(self.ignored_columns)
        return "\n".join(lines)


def pack(
    source: str | Path,
    out: str | Path,
    captions: str | Path | None = None,
    require_caption: bool = True,
    video_column: str | None = None,
    caption_column: str | None = None,
    short_side: int = 720,
    crf: int = 18,
    hdr: str = "tonemap",
    workers: int | None = None,
    timeout: float = 300.0,
    shard_bytes: int = 256 * 2**20,
    progress: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Pack a folder of video with captions beside them, or a CSV or JSONL that names both, into the dataset `out`.

    Every clip is decoded in full. H.264 in mp4, yuv420p, evenly timed and at most `short_side` pixels high or wide
    stays as it is; the rest is encoded again with `crf`. What is of high dynamic range is brought into the range of
    ordinary video, or rejected (`hdr`: tonemap, reject). What cannot be used is listed in the report and in
    `rejected.jsonl` of `out`. A clip that takes over `timeout` seconds is one of these. The result does not depend on
    `workers` (None: one a core). `progress` is called with clips done and clips in all.
    """
    start = time.perf_counter()
    workers = os.cpu_count() or 1 if workers is None else workers
    if min(workers, short_side) < 1 or timeout <= 0 or not 0 <= crf <= 51:
        raise ValueError(
            f"pack: found workers={workers} short_side={short_side} timeout={timeout} crf={crf}, expected at least 1, "
            "at least 1, above 0, 0 to 51"
        )
    if hdr not in ("tonemap", "reject"):
        raise ValueError(f"pack: found hdr={hdr}, expected tonemap or reject")
    found = find_clips(source, captions, video_column, caption_column)
    report = PackReport(Path(out), len(found.clips) + len(found.rejected), ignored_columns=found.ignored)
    report.passed = found.passed
    report.rejected += found.rejected
    usable = captioned(found, report) if require_caption else found.clips
    with owning(out, "pack"):
        task = partial(prepare, short_side=short_side, crf=crf, hdr=hdr)
        pack_clips(source, usable, report, task, shard_bytes, workers, timeout, progress)
    report.seconds = time.perf_counter() - start
    return report


def pack_clips(
    source: str | Path,
    usable: list[Clip],
    report: PackReport,
    task: Callable[[Clip], Any],
    shard_bytes: int,
    workers: int,
    timeout: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the shards of these clips and the list of those that were rejected."""
    with keeping(report), ShardWriter(report.root, shard_bytes) as writer:
        results = run_ordered(task, usable, workers, timeout)
        for done, (clip, result) in enumerate(zip(usable, results, strict=True), 1):
            record(clip, result, writer, report)
            if progress is not None:
                progress(done, len(usable))
        report.without_caption = writer.without_caption
        if not report.packed:
            raise ValueError(f"source: found no clip in {source} that can be packed\n{report.format()}")


@contextmanager
def keeping(report: PackReport) -> Iterator[None]:
    """Write the list of those that were rejected at the end of the block, however that comes."""
    try:
        yield
    except BaseException as error:
        try:
            write_rejected(report)
        # The error that ended the work is the one to be shown.
        except OSError as later:
            error.add_note(f"{REJECTED} could not be written: {later}")
        raise
    write_rejected(report)


def write_rejected(report: PackReport) -> None:
    """Write the list of those that were rejected."""
    lines = "".join(json.dumps(asdict(rejection)) + "\n" for rejection in report.rejected)
    write_whole(report.root / REJECTED, lines.encode())


def captioned(found: Found, report: PackReport) -> list[Clip]:
    """Return the clips that have a caption and report the others."""
    for clip in found.clips:
        if not clip.captions:
            report.rejected.append(Rejection(clip.name, "caption missing", "found no caption, or an empty one"))
    return [clip for clip in found.clips if clip.captions]


def prepare(
    clip: Clip, short_side: int, crf: int, hdr: str = "tonemap"
) -> tuple[dict[str, bytes], dict[str, Any], str] | Rejection:
    """Return members, row and why the clip was encoded again (empty: it was not), or why it is rejected."""
    try:
        if not clip.path.is_file():
            return Rejection(clip.name, "video missing", f"found no file {clip.path}")
        data = clip.path.read_bytes()
        data = as_video(data) if is_animated(data) else data
        notes = first_shown(data).notes
        if hdr == "reject" and "transfer" in notes:
            return Rejection(clip.name, "hdr", f"found a picture of high dynamic range ({notes['transfer']})")
        video, info, reason = fit_video(data, short_side, crf)
    except DecodeError as error:
        return Rejection(clip.name, "video undecodable", str(error))
    except OSError as error:
        return Rejection(clip.name, "video unreadable", str(error))
    members, row = clip_sample(video, info, clip.captions, clip.source, clip.licence, clip.truth)
    origins = [text.origin for text in clip.texts]
    more = name_record(clip.name) | notes | ({"caption_origins": origins} if any(origins) else {})
    return members | {"json": json.dumps(json.loads(members["json"]) | more).encode()}, row, reason


def record(clip: Clip, result: Any, writer: ShardWriter, report: PackReport) -> None:
    """Write a prepared clip, or add it to the rejected ones."""
    if isinstance(result, Lost):
        result = Rejection(clip.name, f"video {result.reason}", result.detail)
    if isinstance(result, Rejection):
        report.rejected.append(result)
        return
    members, row, reason = result
    writer.add(clip.key, members, row)
    report.packed += 1
    if reason:
        report.reencoded[clip.name] = reason
