"""Curate: the clips that the rules keep become shards; nothing is decoded, so it may run again at any time.

The shards follow from the work folder and the rules alone: not from workers, restarts or the time of day.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.books.candidate import Candidate
from data_prep.books.ledger import Ends
from data_prep.books.made import Made, MadeClip
from data_prep.books.work_folder import VIDEOS, read_clip
from data_prep.caption.captions import Captions
from data_prep.choose.rules import Decision, decide
from data_prep.choose.takedown import take_down
from data_prep.engine.stopwatch import clock
from data_prep.preparation import Preparation
from data_prep.report.progress import counted
from data_prep.report.summary import ClipCounts, ShardCounts
from videodiff.data.order.buckets import Bucket
from videodiff.data.samples.shards import ShardWriter, clip_sample, remove_shards
from videodiff.data.samples.sidecars import TEXT_LIMIT, brief
from videodiff.data.storage.files import replacing
from videodiff.data.video.info import VideoInfo

SCORES = "scores.parquet"


def curate(preparation: Preparation) -> None:
    """Write shards, manifest and scores of the kept clips.

    With buckets, each bucket has its own shards; at most one shard of a bucket is not full. If no clip is kept, the
    dataset is removed: clips that are left out must not stay in old shards.
    """
    policy, summary, ledger = preparation.settings.caption, preparation.summary, preparation.ledger
    origins = preparation.plan.origins() if policy.use else ()
    with clock("pack"), closing(Captions(preparation.work, policy, origins)) as captions:
        candidates = counted(preparation.candidates(), preparation.progress, "choose", "clips")
        if preparation.rules.require_caption:
            candidates = (clip._replace(captions=tuple(captions.of(clip))) for clip in candidates)
        decision = decide(candidates, preparation.rules)
        write(preparation, captions, decision)
    clock.count("pack", summary.clips.kept, summary.shards.bytes)
    ledger.spend({"pack": clock.take()["pack"]}, anew=True)
    summary.ends = kept_ends(ledger.ends(), decision.inputs)


def write(preparation: Preparation, captions: Captions, decision: Decision) -> None:
    """Write the dataset, and remove all remaining files of clips that were taken down."""
    output, work, summary = preparation.settings.output, preparation.work, preparation.summary
    out, kept, gone = work.parent, decision.kept, []
    clips = counted(preparation.candidates(), preparation.progress, "pack", "clips", len(decision.reasons))
    records = Records(work)
    with scores_table(out / SCORES) as score, ShardWriter(out, output.shard_bytes) if kept else nullcontext() as shards:
        for candidate, reason in zip(clips, decision.reasons, strict=True):
            score(candidate, reason)
            if not reason:
                shards.add(*sample_of(candidate, *records.of(candidate), captions, work, output.buckets))
            elif reason == "takedown":
                gone.append(candidate.id)
    if not kept:
        remove_shards(out)
    # Two inputs may share a clip (a scene in the spans of both), and one of them may still need it.
    used = shards.keys if kept else set()
    take_down([id for id in gone if id not in used], work, captions.forget)
    if preparation.rules.taken:
        # A call that was killed may have left a part of what is taken down.
        for path in preparation.clips.unknown():
            path.unlink(missing_ok=True)
        shutil.rmtree(work / VIDEOS, ignore_errors=True)
    summary.clips = ClipCounts(len(decision.reasons), kept, decision.left_out, decision.lost)
    summary.clips.without_caption = shards.without_caption if kept else 0
    written = shards.shards if kept else []
    summary.shards = ShardCounts(len(written), sum(shard["bytes"] for shard in written))


def kept_ends(ends: Ends, inputs: dict[str, int]) -> Ends:
    """Return the number of inputs for each outcome; the rules split the `ok` inputs further: see `Decision.inputs`."""
    filtered = Counter(ends.filtered)
    filtered.update({reason: count for reason, count in inputs.items() if reason})
    return Ends(ends.inputs, inputs.get("", 0), dict(sorted(filtered.items())), ends.failed, ends.open)


class Records:
    """The records of clips; the file of a request is read once for all its clips, as these come one after the other."""

    def __init__(self, work: Path) -> None:
        self.work, self.request, self.made = work, "", None

    def of(self, candidate: Candidate) -> tuple[Made, MadeClip]:
        """Return what was made of the request of a clip, and the clip."""
        if candidate.request.id != self.request:
            self.request, self.made = candidate.request.id, Made.read(self.work, candidate.request.id)
        return self.made, next(clip for clip in self.made.clips if clip.id == candidate.id)


def sample_of(
    candidate: Candidate, made: Made, clip: MadeClip, captions: Captions, work: Path, buckets: Sequence[Bucket]
) -> tuple[str, dict[str, bytes], dict[str, Any], str]:
    """Return key, members, row and bucket of a clip in the shards, with where it comes from and how it was made."""
    video, request, texts = read_clip(work, clip.id, "mp4", clip.sha256), candidate.request, captions.of(candidate)
    told = [caption.text for caption in texts]
    members, row = clip_sample(video, clip.info, told, request.source, request.licence, request.notes.get("truth"))
    provenance = {
        "span": list(clip.span),
        "part": request.part and request.part.name,
        "parent": brief(request.parent),
        "name": request.name,
        **captions.provenance(texts),
        "video_sha256": made.video_sha256,
        "times": clip.times,
        "box": list(clip.box),
        **clip.color,
        "deinterlaced": clip.deinterlaced,
        # With `codec: auto` it names the encoder that was used.
        "parameters": made.parameters | {"encode": made.parameters["encode"] | {"codec": clip.codec}},
    }
    if clip.audio is not None:
        provenance["audio"] = clip.audio.to_json()
        if not clip.audio.lost:
            members["m4a"] = read_clip(work, clip.id, "m4a", clip.audio.sha256)
    notes = json.loads(members["json"]) | provenance
    members["json"] = json.dumps(notes).encode()
    # No reader takes a longer file: hours of film at 60 frames a second have this many times.
    for name in ("times", "truth"):
        if len(members["json"]) > TEXT_LIMIT:
            members["json"] = json.dumps(notes := notes | {name: None}).encode()
    scores = {f"score_{name}": value for name, value in candidate.scores.items()}
    return clip.id, members, row | scores, bucket_of(clip.info, buckets)


def bucket_of(info: VideoInfo, buckets: Sequence[Bucket]) -> str:
    """Return the first bucket that a clip fits, as a name; `none` where it fits none, empty where there are none."""
    fitting = (bucket for bucket in buckets if bucket.fits(info.frames, info.height, info.width))
    bucket = next(fitting, None)
    return f"{bucket.frames}x{bucket.height}x{bucket.width}" if bucket else "none" if buckets else ""


@contextmanager
def scores_table(path: Path, batch: int = 10_000) -> Iterator[Callable[[Candidate, str], None]]:
    """Open a table of one row a clip, kept or not: ids, source, span, why it is left out, hashes and all scores.

    Gives what appends a clip; all have scores of the same names. The table takes its name at the clean end.
    """
    fixed = {"id": "", "input": "", "source": "", "start": 0.0, "end": 0.0, "reason": "", "sha256": "", "hash": ""}
    rows, table = [], None

    def flush() -> None:
        nonlocal rows, table
        if table is None:
            types = [(n, pa.string() if isinstance(v, str) else pa.float64()) for n, v in fixed.items()]
            scores = sorted(rows[0].keys() - fixed) if rows else []
            table = pq.ParquetWriter(file, pa.schema([*types, *((name, pa.float64()) for name in scores)]))
        table.write_table(pa.Table.from_pylist(rows, schema=table.schema))
        rows = []

    def add(clip: Candidate, reason: str) -> None:
        request = clip.request
        values = [clip.id, request.id, request.source, *clip.span, reason, clip.sha256.hex(), clip.perceptual.hex()]
        scores = {f"score_{name}": value for name, value in clip.scores.items()}
        rows.append(dict(zip(fixed, values, strict=True)) | scores)
        if len(rows) == batch:
            flush()

    with replacing(path) as file:
        try:
            yield add
            flush()
        finally:
            if table is not None:
                table.close()
