"""Shards: plain WebDataset tars, written whole or not at all, and read by offset.

All shards take their names together, a manifest states the offset of each sample, and the bytes on disk are compared
with the bytes that were written. Python's tarfile writes what webdataset's writer would, without its import of torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from videodiff.data.samples.manifest import FIELDS, NAME, Manifest, ManifestError, ManifestWriter
from videodiff.data.samples.members import MOVIES, STILLS, BoundedHeader, is_hidden, video_of
from videodiff.data.samples.sidecars import SIDECARS, SidecarError, Text, brief, read_captions, read_notes, read_texts
from videodiff.data.storage.cache import CachedFolder
from videodiff.data.storage.files import Hashed, owning, partial_of, room_at, sync, write_beside
from videodiff.data.storage.remote import Url, path_or_url
from videodiff.data.video.info import DecodeError, VideoInfo
from videodiff.words import count_text, split_words

__all__ = [
    "SIDECARS",
    "VIDEOS",
    "WORDS",
    "ShardWriter",
    "Text",
    "checked_video",
    "clip_sample",
    "read_captions",
    "read_notes",
    "read_sample",
    "read_texts",
    "texts_of",
    "video_of",
]

WORDS = "words.txt"
# Extensions of a sample's video; a picture is a video of one frame.
VIDEOS = (*MOVIES, *STILLS)
# In webdataset the extension begins at the first dot of a name, so a key has no dots.
KEY = r"[^./\\\s\x00-\x1f\x7f\ud800-\udfff][^./\\\x00-\x1f\x7f\ud800-\udfff]*"
REQUIRED = ("width", "height", "frames", "fps")


class Group:
    """The shards of one group of samples: the full ones, the open one, and the rows of all samples.

    Rows wait on disk as JSON lines, because in memory they would take two kilobytes per sample.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.rows = partial_of(root / f"{name}-rows").open("xb", buffering=0)
        self.shards: list[dict[str, Any]] = []
        self.samples = 0
        self.tar: tarfile.TarFile | None = None
        self.file: Hashed | None = None
        self.partials: dict[str, Path] = {}

    @property
    def shard(self) -> str:
        """The name of the tar being filled."""
        return f"{self.name}-{len(self.shards):05d}.tar"

    def open(self) -> None:
        """Begin the next tar."""
        self.partials[self.shard] = partial_of(self.root / self.shard)
        self.file = Hashed(self.partials[self.shard])
        self.tar = open_tar(self.file)

    def close(self) -> None:
        """End the tar, and compare the bytes on disk with the bytes that were written."""
        self.tar.close()
        self.file.close()
        path, size, digest = self.partials[self.shard], self.file.size, self.file.digest.hexdigest()
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if (file.tell(), found) != (size, digest):
                raise ValueError(
                    f"{path}: found {file.tell()} bytes, expected the {size} that were written: something else changed "
                    "it, or the disk is damaged"
                )
        self.shards.append({"name": self.shard, "bytes": size, "samples": self.samples, "sha256": digest})
        self.tar, self.file, self.samples = None, None, 0


class ShardWriter:
    """Write samples into `root/<name>-00000.tar` ...; a shard that would exceed `shard_bytes` is closed first.

    Use it in a `with` block. Each group of samples has shards of its own, `<name>-<group>-00000.tar`, one of them open.
    Until the block ends without error the folder keeps its old dataset, also if the program is killed. At the end the
    shards are compared with what was added, then they take their names; `words.txt` and the manifest come last. If the
    program is killed during these renames, the folder has no manifest and is no dataset. `without_caption` counts
    samples without a caption.
    """

    def __init__(self, root: str | Path, shard_bytes: int = 256 * 2**20, name: str = "shard") -> None:
        self.root, self.shard_bytes, self.name = Path(root), shard_bytes, name
        self.groups: dict[str, Group] = {}
        self.words: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.origins: set[str] = set()
        self.scores: set[str] = set()
        self.without_caption = 0

    def __enter__(self) -> ShardWriter:
        with contextlib.ExitStack() as stack:
            stack.enter_context(owning(self.root, "pack"))
            self._discard()
            self.leave = stack.pop_all()
        return self

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The shards that are full, in the order of the manifest."""
        return [shard for _, group in sorted(self.groups.items()) for shard in group.shards]

    def add(self, key: str, members: dict[str, bytes], row: dict[str, Any], group: str = "") -> None:
        """Append one sample: its files by extension, and its row for the manifest.

        `row` needs width, height, frames and fps; source, licence, duration and `score_*` are optional. The other
        columns are filled in here.
        """
        row, captions = self._checked(key, members, row), read_texts(members)
        with room_at(self.root):
            self._append(key, members, row, captions, group)

    def _append(
        self, key: str, members: dict[str, bytes], row: dict[str, Any], captions: list[Text], group: str
    ) -> None:
        """Append a sample that was checked."""
        size = sum(len(data) + 1024 for data in members.values())
        if group not in self.groups:
            self.groups[group] = Group(self.root, f"{self.name}-{group}" if group else self.name)
        open_ = self.groups[group]
        if open_.tar is not None and end_of(open_.tar) + size > self.shard_bytes:
            open_.close()
        if open_.tar is None:
            open_.open()
        offset = end_of(open_.tar)
        add_members(open_.tar, key, members)
        words = [split_words(caption.text) for caption in captions]
        for own in words:
            self.words.update(own)
        self.origins.update(caption.origin for caption in captions if caption.origin)
        self.without_caption += not captions
        self.keys.add(key)
        open_.samples += 1
        place = {"shard": open_.shard, "key": key, "offset": offset, "size": end_of(open_.tar) - offset}
        sums = {"captions": len(captions), "words": max(map(len, words), default=0)}
        sums |= {"sha256": hashlib.sha256(members["mp4"]).hexdigest()}
        self.scores.update(row.keys() - FIELDS.keys())
        open_.rows.write(json.dumps({**row, **place, **sums}).encode() + b"\n")

    def _checked(self, key: str, members: dict[str, bytes], row: dict[str, Any]) -> dict[str, Any]:
        if not re.fullmatch(KEY, key) or key in self.keys:
            raise ValueError(f"key: found {key!r}, expected a new key without dots, slashes and control characters")
        if "mp4" not in members or not all(re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+)*", name) for name in members):
            raise ValueError(
                f"{key}: found members {sorted(members)}, expected mp4 and extensions like txt or text.npy"
            )
        missing = [name for name in REQUIRED if name not in row]
        unknown = [name for name in row if name not in FIELDS and not name.startswith("score_")]
        if missing or unknown:
            raise ValueError(
                f"{key}: found a row without {missing} and with {unknown}, expected {REQUIRED} and only score_* besides"
            )
        return {"source": "", "licence": "", "duration": row["frames"] / row["fps"], **row}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with self.leave:
            try:
                if kind is None:
                    with room_at(self.root):
                        self._commit()
            finally:
                self._discard()

    def _commit(self) -> None:
        if not self.groups:
            raise ValueError(f"{self.root}: found no samples to write, expected at least one")
        for group in self.groups.values():
            group.close()
        words = write_beside(self.root / WORDS, rank_words(self.words))
        with ManifestWriter(self.root, sorted(self.scores), origins=sorted(self.origins)) as manifest:
            rows = 0
            for _, group in sorted(self.groups.items()):
                with open(group.rows.name) as lines:
                    for shard in group.shards:
                        own = list(map(json.loads, itertools.islice(lines, shard["samples"])))
                        manifest.add(shard, own)
                        rows += len(own)
            manifest.finish()
            # All bytes are on disk now, so a full disk has left the old dataset as it was. The manifest goes first:
            # a half-renamed folder can then be taken neither for the old dataset nor for the new one.
            partials = self._counted(rows)
            (self.root / NAME).unlink(missing_ok=True)
            for name, partial in partials.items():
                os.replace(partial, self.root / name)
            for stale in self._tars() - {shard["name"] for shard in self.shards}:
                (self.root / stale).unlink()
            os.replace(words, self.root / WORDS)
            sync(self.root)

    def _counted(self, rows: int) -> dict[str, Path]:
        """Return the temporary paths of the new shards by name; ValueError if one has changed since it was written."""
        samples = sum(shard["samples"] for shard in self.shards)
        if not rows == samples == len(self.keys):
            raise ValueError(
                f"{self.root}: found {count_text(rows, 'row')} and {count_text(samples, 'sample')}, expected "
                f"{len(self.keys)}"
            )
        partials = {name: path for _, group in sorted(self.groups.items()) for name, path in group.partials.items()}
        for shard in self.shards:
            path = partials[shard["name"]]
            found = path.stat().st_size if path.is_file() else None
            if found != shard["bytes"]:
                raise ValueError(f"{path}: found {found} bytes, expected {shard['bytes']}: something else changed it")
        return partials

    def _tars(self) -> set[str]:
        pattern = re.compile(rf"{re.escape(self.name)}-(.+-)?\d{{5}}\.tar")
        return {path.name for path in self.root.iterdir() if pattern.fullmatch(path.name)}

    def _discard(self) -> None:
        parts = [part for group in self.groups.values() for part in (group.tar, group.file, group.rows)]
        for part in parts:
            # On a full disk closing fails too, as it writes the last bytes; the file is removed anyway.
            with contextlib.suppress(OSError):
                if part is not None:
                    part.close()
        for partial in unfinished(self.root, self.name):
            partial.unlink()


def unfinished(root: Path, name: str) -> list[Path]:
    """Return the temporary files of a writer in a folder."""
    patterns = (f".{name}-*.partial", f".{WORDS}.*partial", f".{NAME}.*partial")
    return [path for pattern in patterns for path in root.glob(pattern)]


def check_free(root: Path) -> None:
    """Raise where a folder holds a dataset, or shards of one: what is in them, maybe the source, would be lost."""
    found = next((path for path in (root / NAME, *sorted(root.glob("*.tar"))) if path.is_file()), None)
    if found is not None:
        raise ValueError(
            f"out: found {found} of another dataset, expected a folder without one: choose another out, or remove that "
            "dataset first"
        )


def half_named(root: Path) -> list[Path]:
    """Return the shards of a writer that was killed before its manifest, the last file, took its name.

    Under its temporary name the manifest tells whose shards they are. Whoever locks the folder removes it: ask before.
    """
    found = []
    for partial in root.glob(f".{NAME}.*.partial"):
        # If the manifest is not complete, no shard has its name yet.
        with contextlib.suppress(ManifestError, pa.ArrowException, KeyError, TypeError, ValueError):
            found += [(root / shard["name"], shard["bytes"]) for shard in Manifest(partial).shards]
    return [path for path, size in found if path.is_file() and path.stat().st_size == size]


def remove_half_named(root: Path, shards: Sequence[Path]) -> None:
    """Remove what `half_named` has found, unless the writer has ended well since; the caller owns the folder."""
    for path in shards if not (root / NAME).exists() else ():
        path.unlink()


def remove_shards(root: Path, name: str = "shard") -> None:
    """Remove a dataset, the manifest first, and the temporary files of a killed writer."""
    for path in (root / NAME, *root.glob(f"{name}-*.tar"), root / WORDS, *unfinished(root, name)):
        path.unlink(missing_ok=True)


def open_tar(file: Any) -> tarfile.TarFile:
    """Return a tar that is written to an open file from start to end."""
    # pax would store long names in another way.
    return tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT)


def end_of(tar: tarfile.TarFile) -> int:
    """Return where the next sample of a tar begins."""
    return tar.offset


def add_members(tar: tarfile.TarFile, key: str, members: dict[str, bytes]) -> None:
    """Append the files of one sample to a tar in their order, without owner and time: equal input gives equal bytes."""
    for extension, data in members.items():
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size, member.mode = len(data), 0o444
        tar.addfile(member, io.BytesIO(data))


def clip_sample(
    video: bytes, info: VideoInfo, captions: Sequence[str], source: str = "", licence: str = "", truth: Any = None
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the members and the row of a clip for `ShardWriter.add`; the first caption becomes the txt."""
    row = {name: getattr(info, name) for name in ("width", "height", "frames", "fps", "duration")}
    row |= {"source": brief(source), "licence": brief(licence)}
    notes = row | ({"captions": list(captions)} if len(captions) > 1 else {}) | ({"truth": truth} if truth else {})
    text = captions[0] if captions else ""
    return {"mp4": video, "txt": text.encode(), "json": json.dumps(notes).encode()}, row


def rank_words(words: Counter[str]) -> bytes:
    """Return the content of words.txt: one word per line, the most frequent first."""
    return "".join(f"{word}\n" for word in sorted(words, key=lambda word: (-words[word], word))).encode()


def read_sample(
    root: str | Path | Url | CachedFolder, row: dict[str, Any], only: Collection[str] | None = None
) -> dict[str, bytes]:
    """Return the files of a sample by extension, read at its offset; `only` selects extensions.

    `root` is a folder, a URL that is read by ranges, or the `root` of a manifest that was loaded with a cache.
    """
    path, prefix, end = path_or_url(root) / row["shard"], f"{row['key']}.", row["offset"] + row["size"]
    members, found = {}, False
    try:
        with path.open("rb") as file:
            file.seek(row["offset"])
            with tarfile.open(fileobj=file, mode="r:", tarinfo=BoundedHeader) as tar:
                for member in tar:
                    if member.offset >= end:
                        break
                    if is_hidden(member):
                        continue
                    plain = member.isreg() and not member.issparse() and member.offset_data + member.size <= end
                    if not member.name.startswith(prefix) or not plain:
                        raise tarfile.ReadError(f"found {member.name!r} of {member.size} bytes")
                    extension, found = member.name.removeprefix(prefix).lower(), True
                    # Of several files with one name the first counts, see `index_tars`.
                    if extension not in members and (only is None or extension in only):
                        members[extension] = tar.extractfile(member).read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: found no such file, expected a shard as in the manifest") from error
    except (tarfile.TarError, ValueError) as error:
        raise ManifestError(
            f"{path}: {row['key']}: expected its files at offset {row['offset']}, as in the manifest: {error}"
        ) from error
    if not found:
        raise ManifestError(f"{path}: {row['key']}: found no file at offset {row['offset']}, expected {prefix}mp4")
    return members


def checked_video(members: dict[str, bytes], row: dict[str, Any], where: str) -> bytes:
    """Return the video of a sample; DecodeError, which begins with `where`, if it is not the one of the manifest.

    A decoder returns frames for damaged bytes too. The checksum costs less than a hundredth of the decoding.
    """
    video = video_of(members)
    if video is None:
        raise DecodeError(f"{where}: found no video, expected one of {', '.join(VIDEOS[:5])}, ...")
    if (found := hashlib.sha256(members[video]).hexdigest()) != row["sha256"]:
        wanted = row["sha256"][:12]
        raise DecodeError(f"{where}.{video}: found other bytes (sha256 {found[:12]}), not the manifest's {wanted}")
    return members[video]


def texts_of(root: str | Path | Url | CachedFolder, row: dict[str, Any]) -> list[Text]:
    """Return the captions of a sample, see `read_sample`; a SidecarError names the sample."""
    members = read_sample(root, row, SIDECARS)
    try:
        return read_texts(members)
    except SidecarError as error:
        raise SidecarError(f"{path_or_url(root) / row['shard']}: {row['key']}: {error}") from error
