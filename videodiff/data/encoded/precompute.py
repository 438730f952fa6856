"""Precompute: encode a dataset once, into a new dataset with the same shards, keys and order, and train from that.

One process writes each shard, from the samples of the same shard alone: its bytes depend neither on the number of
processes nor on interruptions. `.cache` holds a record of each finished shard with its rows; a run encodes the shards
without a record. The manifest is written last; a folder without a manifest is no dataset.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from videodiff.codec.cached import (
    EncodingError,
    difference,
    encode_captions,
    latent_member,
    latent_record,
    text_names,
    text_record,
    write_array,
)
from videodiff.data.encoded.windows import PIECE, Windows
from videodiff.data.loader.quarantine import Quarantine, SampleId
from videodiff.data.loader.workers import Pace, Read, Workers, read_here
from videodiff.data.processes.child import GRACE_S, Child, Gone
from videodiff.data.samples.manifest import NAME, Manifest, ManifestError, ManifestWriter
from videodiff.data.samples.shards import (
    SIDECARS,
    VIDEOS,
    WORDS,
    add_members,
    check_free,
    checked_video,
    end_of,
    open_tar,
    read_captions,
    read_sample,
)
from videodiff.data.samples.sidecars import SidecarError
from videodiff.data.storage.cache import is_remote
from videodiff.data.storage.files import owning, remove_abandoned, replacing, write_whole
from videodiff.data.video.decode import decode_into
from videodiff.machine import cores
from videodiff.words import count_text

WORK, SETTINGS, FAILED = ".cache", "settings.json", "failed.jsonl"
# Samples per batch of the text encoder.
TOGETHER = 16
Encoders = tuple[nn.Module | None, nn.Module | None]


@dataclass(frozen=True)
class Plan:
    """What to encode and how; `build` returns codec and text encoder, None for the one that is not used.

    `sizes`: pairs of height and width; each clip is encoded at the one with the nearest aspect ratio. `video`: keep the
    mp4. `decoders`: decoding processes per encoder; None: as many as there are cores for; 0: the encoder's process
    decodes itself, and hangs if a decoder hangs. `timeout`: seconds per 64 frames in a decoding process.
    """

    root: str
    out: Path
    build: Callable[[], Encoders]
    sizes: Sequence[tuple[int, int]] = ((256, 256),)
    stride: int = 1
    frames: int | None = None
    video: bool = False
    decoders: int | None = None
    timeout: float = 300.0


def precompute(
    plan: Plan, workers: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Encode the missing shards of a dataset; return the counts of samples, failed, shards, bytes and enlarged.

    `workers`: processes on this machine, by default one per GPU, or one per core without GPUs. Under torchrun this
    process is one of the workers, and `out` is a folder that all machines share. Samples that are too short, or cannot
    be decoded or encoded, are left out and listed in `failed.jsonl`. Settings that differ from the ones `out` was
    begun with are an error. After an error, such as a full disk, the same call continues.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    workers = (torch.cuda.device_count() or cores()) if workers is None else workers
    if plan.decoders is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", workers))
        plan = replace(plan, decoders=max(1, cores() // max(here, 1)))
    if workers < 1 or plan.decoders < 0 or plan.timeout <= 0:
        raise ValueError(
            f"found workers={workers} decoders={plan.decoders} timeout={plan.timeout}, expected workers >= 1, "
            f"decoders >= 0, timeout > 0"
        )
    if ":/" in str(plan.out):
        raise ValueError(f"out: found the URL {plan.out}, expected a folder")
    with owning(plan.out, "cache") if rank == 0 else contextlib.nullcontext():
        source, encoders = Manifest.load(plan.root), plan.build()
        records = records_of(plan, encoders)
        check_out(plan.out, source)
        if world > 1:
            return together(plan, source, encoders, records, rank, world, progress)
        missing = begin(plan, source, records)
        if len(missing) > 1 and workers > 1:
            del encoders
            spread(plan, source, missing, min(workers, len(missing)), progress)
        else:
            encode_shards(plan, source, encoders, missing, 0, counter(progress, source, missing))
        return finish(plan, source, records)


def together(
    plan: Plan,
    source: Manifest,
    encoders: Encoders,
    records: dict[str, Any],
    rank: int,
    world: int,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Encode this rank's share under torchrun; rank 0 broadcasts the missing shards and writes the manifest."""
    from torch import distributed

    distributed.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        missing = [begin(plan, source, records) if rank == 0 else None]
        distributed.broadcast_object_list(missing, src=0)
        share = missing[0][rank::world]
        local = int(os.environ.get("LOCAL_RANK", 0))
        encode_shards(plan, source, encoders, share, local, counter(progress, source, share))
        distributed.barrier()
        return finish(plan, source, records) if rank == 0 else {}
    finally:
        distributed.destroy_process_group()


def records_of(plan: Plan, encoders: Encoders) -> dict[str, dict[str, Any]]:
    """Return the records of codec and text encoder for the manifest; ValueError if settings do not fit them."""
    codec, text = encoders
    if codec is None and text is None:
        raise ValueError("found codec=null and text=null, expected at least one of them")
    if codec is None and not plan.video:
        raise ValueError("found video=false and codec=null, expected video=true or a codec")
    records = {}
    if codec is not None:
        windows, (_, fh, fw) = Windows.of(codec, plan.stride, plan.frames), codec.compression
        if not plan.sizes or any(h < 1 or w < 1 or h % fh or w % fw for h, w in plan.sizes):
            raise ValueError(
                f"sizes: found {list(map(list, plan.sizes))}, expected [height, width] divisible by {fh} and {fw}"
            )
        records["latent"] = latent_record(codec, plan.sizes, asdict(windows))
    if text is not None:
        records["text"] = text_record(text)
    return records


def begin(plan: Plan, source: Manifest, records: dict[str, Any]) -> list[int]:
    """Return the indices of the missing shards; the manifest is removed if there are any."""
    settings, path = {**records, "video": plan.video}, plan.out / WORK / SETTINGS
    before = json.loads(path.read_text()) if path.is_file() else settings
    for what in sorted(before.keys() | settings.keys()):
        if differs := difference(what, settings.get(what), before.get(what)):
            name, new, old = differs
            raise ValueError(f"{name}: found {new}, expected {old} as in {path}, or another out")
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1).encode())
    remove_abandoned(path.parent)
    names = {shard["name"] for shard in source.shards}
    stale = [tar for tar in plan.out.glob("*.tar") if tar.name not in names]
    missing = [number for number in range(len(source.shards)) if note_of(plan.out, source.shards[number]) is None]
    if missing or stale:
        (plan.out / NAME).unlink(missing_ok=True)
    for tar in stale:
        tar.unlink()
        (path.parent / f"{tar.name}.json").unlink(missing_ok=True)
    return missing


def check_out(out: Path, source: Manifest) -> None:
    """Raise if the encoded dataset must not be written to `out`."""
    if isinstance(source.path, Path) and source.path.parent.resolve() == out.resolve():
        raise ValueError(f"out: found the dataset itself, {out}, expected another folder")
    if not (out / WORK / SETTINGS).is_file():
        check_free(out)


def note_of(out: Path, shard: dict[str, Any], lines: int = 1) -> list[Any] | None:
    """Return the lines of the record of an encoded shard, None if the shard must be encoded.

    The first line is its entry in the list of shards, then come its rows, then the samples that are left out.
    """
    try:
        with (out / WORK / f"{shard['name']}.json").open() as file:
            note = [json.loads(line) for line in islice(file, lines)]
    except FileNotFoundError:
        return None
    tar, made = out / shard["name"], note[0]
    whole = not made["samples"] or (tar.is_file() and tar.stat().st_size == made["bytes"])
    return note if whole and made["source_sha256"] == shard["sha256"] else None


def counter(progress: Callable[[int, int], None], source: Manifest, numbers: Sequence[int]) -> Callable[[int], None]:
    """Return a function that adds finished samples and reports progress over the samples of these shards."""
    done, total = 0, sum(int(source.counts[number]) for number in numbers)

    def add(samples: int) -> None:
        nonlocal done
        done += samples
        progress(done, total)

    return add


def spread(
    plan: Plan, source: Manifest, missing: Sequence[int], workers: int, progress: Callable[[int, int], None]
) -> None:
    """Distribute shards over processes; the first failure ends all of them."""
    add, shares = counter(progress, source, missing), [list(missing)[rank::workers] for rank in range(workers)]
    children = [Child(serve, plan, share, rank, nests=True) for rank, share in enumerate(shares)]
    busy = {child.connection: child for child in children}
    try:
        while busy:
            for end in wait(list(busy)):
                try:
                    message = busy[end].receive()
                except Gone:
                    how = busy[end].end(GRACE_S)
                    raise ChildProcessError(f"{how}; run the same command again to continue") from None
                if isinstance(message, BaseException):
                    raise message
                if message is None:
                    del busy[end]
                else:
                    add(message)
    finally:
        for child in children:
            child.end()


def serve(end: Connection, plan: Plan, numbers: Sequence[int], rank: int) -> None:
    """Encode these shards in a worker process; send the number of finished samples, and None at the end."""
    try:
        encode_shards(plan, Manifest.load(plan.root), plan.build(), numbers, rank, end.send)
        end.send(None)
    except (ValueError, OSError) as error:
        end.send(error)


def encode_shards(
    plan: Plan, source: Manifest, encoders: Encoders, numbers: Sequence[int], rank: int, add: Callable[[int], None]
) -> None:
    """Encode these shards on the GPU of this rank, or on one core if there is none."""
    if not numbers:
        return
    threads, device = torch.get_num_threads(), "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{rank % torch.cuda.device_count()}"
        torch.backends.cudnn.deterministic = True
    # With another number of threads, sums would differ in the last bit.
    torch.set_num_threads(1)
    codec, text = (None if model is None else model.to(device) for model in encoders)
    try:
        with contextlib.ExitStack() as stack:
            reads = Reads(plan, Windows.of(codec, plan.stride, plan.frames), stack) if codec is not None else None
            for number in numbers:
                encode_shard(plan, source, number, codec, text, reads, device, add)
    finally:
        torch.set_num_threads(threads)


def encode_shard(
    plan: Plan,
    source: Manifest,
    number: int,
    codec: nn.Module | None,
    text: nn.Module | None,
    reads: Reads | None,
    device: str,
    add: Callable[[int], None],
) -> None:
    """Write one encoded shard, then its record."""
    shard, rows = source.shards[number], source.block(number).to_pylist()
    frames = reads.clips(source, rows) if reads is not None else None
    made, failed = [], []
    with replacing(plan.out / shard["name"]) as file:
        with open_tar(file) as tar:
            for start in range(0, len(rows), TOGETHER):
                group = rows[start : start + TOGETHER]
                samples = [read_sample(source.root, row, None if plan.video else SIDECARS) for row in group]
                captions = [captions_of(members) for members in samples]
                texts = encode_texts(text, captions) if text is not None else None
                for place, row in enumerate(group):
                    try:
                        new = {} if frames is None else {"latent.npy": latent_member(codec, next(frames), device)}
                        if isinstance(captions[place], SidecarError):
                            raise EncodingError(str(captions[place]))
                        if texts is not None:
                            made_of = zip(text_names(len(texts[place])), texts[place], strict=True)
                            new |= {name: write_array(array, name) for name, array in made_of}
                    except EncodingError as error:
                        failed.append({"shard": shard["name"], "key": row["key"], "reason": str(error)})
                    else:
                        size = () if codec is None else size_of(row, plan.sizes)
                        made.append(append(tar, row, {**samples[place], **new}, size, len(captions[place])))
                add(len(group))
        file.flush()
        file.seek(0)
        entry = {"name": shard["name"], "samples": len(made), "bytes": 0}
        entry |= {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}
    entry["source_sha256"] = shard["sha256"]
    note = "".join(json.dumps(line) + "\n" for line in (entry, made, failed))
    write_whole(plan.out / WORK / f"{shard['name']}.json", note.encode())


class Reads:
    """Read frames of clips in child processes: one that hangs or crashes costs its clip, not the run."""

    def __init__(self, plan: Plan, windows: Windows, stack: contextlib.ExitStack) -> None:
        self.sizes, self.windows, self.quarantine = plan.sizes, windows, Quarantine(budget=math.inf)
        if not plan.decoders:
            self.batches = partial(read_here, PartReader(), stand_in=nothing, quarantine=self.quarantine)
            return
        pixels = max(height * width for height, width in plan.sizes) * (windows.frames or PIECE)
        how = {"timeout": plan.timeout, "pace": Pace(ahead=plan.decoders + 1)}
        workers = Workers(PartReader(), plan.decoders, 3 * pixels, nothing, self.quarantine, **how)
        self.batches = stack.enter_context(workers).batches

    def clips(self, source: Manifest, rows: Sequence[dict[str, Any]]) -> Iterator[Iterator[np.ndarray]]:
        """Yield the parts of each row, uint8 `t h w c`; take them before the next row."""
        parts = [self.windows.parts(row["frames"]) for row in rows]
        asked = (
            [Part((i, j), sample_of(row), (len(part), *size_of(row, self.sizes), 3), (source.root, row, part))]
            for i, row in enumerate(rows)
            for j, part in enumerate(parts[i])
        )
        with contextlib.closing(self.batches(asked)) as reads:
            for row, own in zip(rows, parts, strict=True):
                yield self.clip(row, len(own), islice(reads, len(own)))

    def clip(self, row: dict[str, Any], count: int, reads: Iterable[Read]) -> Iterator[np.ndarray]:
        """Yield the parts of one clip; EncodingError after the last part if one of them failed."""
        reason = None if count else f"found {count_text(row['frames'], 'frame')}, too few for a window: {self.windows}"
        for read in reads:
            reason = reason or self.failure(row, read)
            if reason is None:
                yield read.frames[0]
        if reason is not None:
            raise EncodingError(reason)

    def failure(self, row: dict[str, Any], read: Read) -> str | None:
        """Return why a part could not be decoded, None if it was."""
        return None if read.tasks[0].source is not None else self.quarantine.losses[sample_of(row)].reason


class Part(NamedTuple):
    """Frames of a sample that are encoded together: root, row and frame indices; or a placeholder."""

    order: tuple[int, int]
    sample: SampleId
    shape: tuple[int, int, int, int]
    source: tuple[Any, dict[str, Any], range] | None


class PartReader:
    """Fill `out` with the frames of a part; leave it unchanged for a placeholder."""

    def bring(self, part: Part) -> dict[str, bytes] | None:
        """Return the files of a sample that a host has, None if it is here: see `Workers`."""
        remote = part.source is not None and is_remote(part.source[0])
        return read_sample(*part.source[:2], VIDEOS) if remote else None

    def __call__(self, part: Part, out: np.ndarray, members: dict[str, bytes] | None = None) -> bool:
        if part.source is not None:
            root, row, numbers = part.source
            found = read_sample(root, row, VIDEOS) if members is None else members
            decode_into(out, checked_video(found, row, f"{root / row['shard']}: {row['key']}"), numbers)
        return True


def nothing(asked: Part, attempt: int) -> Part:
    """Return the placeholder for a part that cannot be read."""
    return asked._replace(sample=SampleId("", "", attempt), source=None)


def sample_of(row: dict[str, Any]) -> SampleId:
    return SampleId(row["shard"], row["key"], row["offset"])


def size_of(row: dict[str, Any], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the height and width at which a clip is encoded."""
    height, width = nearest_sizes(np.array([row["height"]]), np.array([row["width"]]), sizes)[0].tolist()
    return height, width


def nearest_sizes(height: np.ndarray, width: np.ndarray, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return for each clip the size (n, 2) with the aspect ratio nearest to its own, the first one of several."""
    table = np.array(sizes)
    aspects = np.log(table[:, 1] / table[:, 0])[:, None] - np.log(width / height)
    return table[np.abs(aspects).argmin(axis=0)]


def captions_of(members: dict[str, bytes]) -> list[str] | SidecarError:
    """Return the captions of a sample, or why they cannot be read."""
    try:
        return read_captions(members)
    except SidecarError as error:
        return error


def encode_texts(text: nn.Module, captions: Sequence[list[str] | SidecarError]) -> list[list[torch.Tensor]]:
    """Return the encoded captions of each sample; a sample without captions gets the empty caption."""
    all_of = [[] if isinstance(own, SidecarError) else own or [""] for own in captions]
    flat = [caption for own in all_of for caption in own]
    encoded = iter(encode_captions(text, flat) if flat else ())
    return [list(islice(encoded, len(own))) for own in all_of]


def append(
    tar: tarfile.TarFile, row: dict[str, Any], members: dict[str, bytes], size: Sequence[int], captions: int
) -> dict[str, Any]:
    """Add a sample to a tar and return its row.

    `size`: height and width of the encoded frames, empty without any. `captions`: their number, counted again: an older
    manifest may have counted by other rules, and each caption has its own text.npy.
    """
    offset = end_of(tar)
    add_members(tar, row["key"], members)
    encoded = dict(zip(("height", "width"), size, strict=False))
    return {**row, **encoded, "captions": captions, "offset": offset, "size": end_of(tar) - offset}


def finish(plan: Plan, source: Manifest, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write the files about all shards: words.txt and failed.jsonl, and the manifest last."""
    failed, scores, count = [], [n for n in source.file.schema_arrow.names if n.startswith("score_")], 0
    origins = source.caption_origins or ()
    with ManifestWriter(plan.out, scores, origins=origins, encoded=records) as manifest:
        for shard in source.shards:
            note = note_of(plan.out, shard, lines=3)
            if note is None:
                raise ManifestError(
                    f"{plan.out / shard['name']}: found a missing or changed shard; run the same command again"
                )
            entry, rows, lost = note
            failed += lost
            if entry["samples"]:
                manifest.add(entry, rows)
                count += entry["samples"]
            else:
                (plan.out / shard["name"]).unlink(missing_ok=True)
        lines = "".join(json.dumps(entry) + "\n" for entry in failed)
        write_whole(plan.out / FAILED, lines.encode())
        if not count:
            raise ValueError(f"{plan.out}: found no sample that could be encoded, see {plan.out / FAILED}")
        words = source.path.parent / WORDS
        if isinstance(words, Path) and words.is_file():
            write_whole(plan.out / WORDS, words.read_bytes())
    size = sum(shard["bytes"] for shard in manifest.shards)
    small = enlarged(source, plan.sizes) if "latent" in records else 0
    made = {"samples": count, "failed": len(failed), "shards": len(manifest.shards), "bytes": size}
    return made | {"enlarged": small}


def enlarged(source: Manifest, sizes: Sequence[tuple[int, int]]) -> int:
    """Return how many clips of a dataset are smaller than the size at which they are encoded."""
    found = 0
    for height, width in source.by_shard("height", "width"):
        wanted = nearest_sizes(height, width, sizes)
        found += int(((height < wanted[:, 0]) | (width < wanted[:, 1])).sum())
    return found
