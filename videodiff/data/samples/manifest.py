"""The manifest: one Parquet row per sample, so that order, splits and sizes are known without opening a tar.

The list of shards with their counts is read when the manifest is opened. Rows are read by row group, because a
manifest may have 100 million of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videodiff.data.samples.parquet import Pages, TooLargeError, longest_text, open_parquet, weight
from videodiff.data.storage.files import partial_of, sync
from videodiff.data.storage.remote import Url, path_or_url
from videodiff.words import count_text

if TYPE_CHECKING:
    from videodiff.data.storage.cache import Cache

NAME = "manifest.parquet"
VERSION = 2
FIELDS = {
    "shard": pa.string(),
    "key": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "frames": pa.int32(),
    "fps": pa.float64(),
    "duration": pa.float64(),
    "captions": pa.int32(),
    "source": pa.string(),
    "licence": pa.string(),
    "sha256": pa.string(),
}
# Columns that older manifests lack: the number of words of a sample's longest caption.
LATER = {"words": pa.int32()}
IDENTITY = ("shard", "key", "sha256")
# Larger row groups keep the footer small (5 MB for 100 million samples); smaller ones read one shard's rows faster.
ROWS_A_GROUP = 2**15
ROWS_KEPT = 2**20
# Bytes: the least of a row, the most of a text, the most of a column's texts on average, and a column always allowed.
LEAST_BYTES, TEXT, MEAN_TEXT, FREE_BYTES = 4, 2**16, 2**12, 2**24


def instead_of(folder: Path) -> str:
    """Return what is to be done with a folder that has no manifest, empty if it holds nothing of a dataset."""
    if (folder / "summary.json").is_file():
        return "; by its summary.json `videodiff prep` kept no clip: other limits, or prep=all, keep more"
    if (folder / ".work").is_dir():
        return "; `videodiff prep` has not ended there: the same command goes on"
    if next(folder.glob("*.tar"), None) is not None:
        return f"; `videodiff index` makes one for its tars, data=webdataset data.urls={folder} streams them"
    return ""


class ManifestError(ValueError):
    """A dataset whose manifest cannot be used, or does not fit its shards."""


class Manifest:
    """The rows of a dataset and the list of its shards; reading one row reads all rows of its shard.

    `root` is where the shards are: a folder, a URL, or a URL read through a cache; `root / name` can be opened.
    `counts` has the number of samples of each shard. `caption_origins` lists who wrote the captions, None if unknown.
    `encoded` says which codec and text encoder made cached latents and text, see `codec.cached`.
    """

    def __init__(self, path: Path | Url) -> None:
        self.path, self.kept = path, {}
        self.groups = np.cumsum(
            [0, *(self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups))]
        )
        head = json.loads(self.file.metadata.metadata[b"videodiff"])
        if head["version"] != VERSION:
            raise ManifestError(f"{path}: found version {head['version']!r}, expected {VERSION}")
        self.shards = [checked_shard(shard) for shard in head["shards"]]
        self.counts = np.array([shard["samples"] for shard in self.shards], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.root: Any = Url(head["shards_at"]) if "shards_at" in head else path.parent
        self.stated_fingerprint = head.get("fingerprint")
        self.caption_origins: list[str] | None = head.get("caption_origins")
        self.encoded = {what: dict(record) for what, record in head.get("encoded", {}).items()}

    @classmethod
    def load(cls, root: str | Path | Url, cache: Cache | None = None) -> Manifest:
        """Open the manifest of a folder or URL; remote shards are read through `cache`, or by ranges without one.

        The sizes of shards on disk are compared with the manifest here, the sizes of remote shards when they are
        fetched. Rows are checked when they are read; the first row group is checked here.
        """
        root = path_or_url(root)
        path = root / NAME
        if isinstance(root, Path) and not root.is_dir():
            raise FileNotFoundError(f"{root}: found no such folder, expected a dataset")
        if isinstance(root, Path) and not path.is_file():
            raise FileNotFoundError(
                f"{root}: found no {NAME}, expected a dataset as written by `videodiff pack` or "
                f"`prep`{instead_of(root)}"
            )
        try:
            manifest = cls(path)
        except ManifestError:
            raise
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{path}: cannot be read as a manifest: {error}") from error
        manifest.check()
        if isinstance(manifest.root, Url) and cache is not None:
            manifest.root = cache.over(manifest.root, manifest.shards)
        return manifest

    @cached_property
    def file(self) -> Pages:
        """The open Parquet file; each process opens its own."""
        # A thread of Arrow may let go of the file while the process ends; with a file of Python it would abort then.
        file = pa.OSFile(str(self.path)) if isinstance(self.path, Path) else self.path.open("rb")
        size = file.seek(0, os.SEEK_END)
        try:
            table = open_parquet(file, pre_buffer=True)
        except TooLargeError as error:
            raise ManifestError(f"{self.path}: {error}") from error
        rows = table.metadata.num_rows
        # Each row has a checksum of 32 bytes, which do not compress.
        if rows > ROWS_KEPT and size < LEAST_BYTES * rows:
            raise ManifestError(
                f"{self.path}: found {count_text(rows, 'row')} in {size} bytes, expected at least {LEAST_BYTES} each"
            )
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "file"} | {"kept": {}}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, index: int) -> dict[str, Any]:
        """Return one row as plain values."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: found row {index}, expected one of {len(self)}")
        index %= len(self)
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.block(shard).slice(index - int(self.starts[shard]), 1).to_pylist()[0]

    def block(self, shard: int) -> pa.Table:
        """Return the rows of the shard at this index; the rows of recently used shards stay in memory."""
        table = self.kept.pop(shard, None)
        if table is None:
            table = self.read(int(self.starts[shard]), int(self.starts[shard + 1]))
            while self.kept and sum(map(len, self.kept.values())) + len(table) > ROWS_KEPT:
                del self.kept[next(iter(self.kept))]
        self.kept[shard] = table
        return table

    def read(self, start: int, stop: int) -> pa.Table:
        """Return the rows from `start` to `stop`, checked; whole row groups are read."""
        first, last = np.searchsorted(self.groups, [start, stop - 1], side="right") - 1
        table = self.read_groups(range(first, last + 1), None).slice(start - self.groups[first], stop - start)
        self._check_rows(start, table)
        # A slice would keep the whole row group in memory.
        return table.take(np.arange(len(table)))

    def read_groups(self, groups: Sequence[int], columns: Sequence[str] | None) -> pa.Table:
        """Return the columns of these row groups."""
        try:
            table = self.file.read_row_groups(groups, columns)
            return pa.table({name: self._unpacked(name, table.column(name)) for name in table.column_names})
        except (pa.ArrowException, TooLargeError) as error:
            raise ManifestError(f"{self.path}: cannot be read as a manifest: {error}") from error

    def _unpacked(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return a column with its dictionary unpacked; ManifestError if its texts are longer than names can be."""
        if not pa.types.is_dictionary(column.type):
            return column
        longest = max(map(longest_text, column.chunks), default=0)
        size = sum(map(weight, column.chunks))
        if longest > TEXT or size > FREE_BYTES + MEAN_TEXT * len(column):
            raise ManifestError(
                f"{self.path}: column {name}: found texts of up to {longest} bytes, {size} in "
                f"{count_text(len(column), 'row')}, expected at most {TEXT}, and {MEAN_TEXT} on average"
            )
        return column.cast(column.type.value_type)

    def column(self, name: str) -> np.ndarray:
        """Return a whole column as a numpy array; `by_shard` needs less memory."""
        return self.read_groups(range(len(self.groups) - 1), [name]).column(0).to_numpy()

    def by_shard(self, *names: str) -> Iterator[list[np.ndarray]]:
        """Yield these columns shard by shard; one row group is in memory at a time."""
        shard, held = 0, None
        for group in range(len(self.groups) - 1):
            table = self.read_groups([group], names)
            held, done = table if held is None else pa.concat_tables([held, table]), 0
            while shard < len(self.counts) and done + self.counts[shard] <= len(held):
                part = held.slice(done, self.counts[shard])
                yield [part.column(name).to_numpy() for name in names]
                done, shard = done + int(self.counts[shard]), shard + 1
            held = held.slice(done)

    @property
    def counts_words(self) -> bool:
        """Whether the rows state the number of words of a sample's longest caption."""
        return "words" in self.file.schema_arrow.names

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the clips and their order; it does not depend on where the dataset lies."""
        if self.stated_fingerprint:
            return self.stated_fingerprint
        digest = hashlib.sha256()
        for group in range(len(self.groups) - 1):
            add_rows(digest, self.read_groups([group], IDENTITY))
        return digest.hexdigest()

    def check(self) -> None:
        """Raise if the columns, the shards or the first row group do not fit together."""
        schema = self.file.schema_arrow
        for name, kind in (FIELDS | LATER).items():
            found = schema.field(name).type if name in schema.names else "none"
            found = found.value_type if isinstance(found, pa.DictionaryType) else found
            if found != kind and (name in FIELDS or found != "none"):
                raise ManifestError(f"{self.path}: column {name}: found {found}, expected {kind} without null values")
        if self.groups[-1] == 0:
            raise ManifestError(f"{self.path}: found no samples, expected at least one")
        if self.groups[-1] != len(self):
            raise ManifestError(
                f"{self.path}: found {self.groups[-1]} rows, expected {len(self)}, the samples of its shards"
            )
        if isinstance(self.root, Path):
            self._check_files()
        self.read(0, int(self.groups[1]))

    def _check_files(self) -> None:
        for shard in self.shards:
            path, expected = self.root / shard["name"], shard["bytes"]
            try:
                found = path.stat().st_size
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{path}: found no such file, expected a shard of {expected} bytes") from error
            if found != expected:
                raise ManifestError(f"{path}: found {found} bytes, expected {expected} as in the manifest")

    def _check_rows(self, start: int, table: pa.Table) -> None:
        for name, kind in FIELDS.items():
            if table.column(name).null_count:
                raise ManifestError(f"{self.path}: column {name}: found null values, expected {kind} without any")
        number = np.searchsorted(self.starts, start + np.arange(len(table)), side="right") - 1
        names, room = zip(*((self.shards[i]["name"], self.shards[i]["bytes"]) for i in number), strict=True)
        strange = np.not_equal(table.column("shard").to_pylist(), names)
        if strange.any():
            row = int(np.argmax(strange))
            raise ManifestError(
                f"{self.path}: found rows of {table.column('shard')[row].as_py()!r}, expected rows of {names[row]!r}, "
                f"in the order of the list of shards"
            )
        offset, size, frames = (table.column(name).to_numpy() for name in ("offset", "size", "frames"))
        outside = (offset < 0) | (size <= 0) | (offset > np.array(room) - size) | (frames < 1)
        if outside.any():
            row = table.slice(int(np.argmax(outside)), 1).to_pylist()[0]
            raise ManifestError(
                f"{self.root / row['shard']}: {row['key']}: found {count_text(row['frames'], 'frame')} in "
                f"{row['size']} bytes from {row['offset']}, expected at least one, inside the shard's "
                f"{room[int(np.argmax(outside))]} bytes"
            )


class ManifestWriter:
    """Write a manifest shard by shard, in row groups of whole shards; use it in a `with` block.

    `scores` names further columns, of numbers. `shards_at`: the URL of the shards if they do not lie beside the
    manifest. `origins`: who wrote the captions, if known. `encoded`: see `Manifest`.
    """

    def __init__(
        self,
        root: Path,
        scores: Sequence[str] = (),
        shards_at: Url | None = None,
        origins: Sequence[str] = (),
        encoded: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.root, self.partial = root, partial_of(root / NAME)
        self.schema = pa.schema([*FIELDS.items(), *LATER.items(), *((name, pa.float64()) for name in scores)])
        self.more = {} if shards_at is None else {"shards_at": str(shards_at)}
        self.more |= {"caption_origins": list(origins)} if origins else {}
        self.more |= {"encoded": encoded} if encoded else {}
        self.shards, self.rows, self.digest = [], [], hashlib.sha256()

    def __enter__(self) -> ManifestWriter:
        self.output = self.partial.open("xb")
        self.file = pq.ParquetWriter(
            self.output, self.schema, compression="zstd", store_schema=False, write_statistics=False
        )
        return self

    def add(self, shard: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        """Append a shard (name, bytes, samples, sha256) and its rows, in the order of their offsets."""
        self.shards.append(checked_shard(shard))
        self.rows += rows
        if len(self.rows) >= ROWS_A_GROUP:
            self._write()

    def _write(self) -> None:
        table = pa.Table.from_pylist(self.rows, schema=self.schema)
        self.file.write_table(table, row_group_size=max(len(table), 1))
        add_rows(self.digest, table)
        self.rows = []

    def finish(self) -> None:
        """Write the whole file under its temporary name; the steps after it need no more disk space."""
        if self.output.closed:
            return
        self._write()
        head = {"version": VERSION, "shards": self.shards, "fingerprint": self.digest.hexdigest()}
        self.file.add_key_value_metadata({"videodiff": json.dumps(head | self.more)})
        self.file.close()
        self.output.flush()
        os.fsync(self.output.fileno())
        self.output.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            if kind is None:
                self.finish()
                os.replace(self.partial, self.root / NAME)
                sync(self.root)
        finally:
            # After an error or on a full disk closing may fail; the file is removed anyway.
            with contextlib.suppress(OSError, ValueError):
                self.file.close()
            with contextlib.suppress(OSError):
                self.output.close()
            self.partial.unlink(missing_ok=True)


def add_rows(digest: hashlib._Hash, table: pa.Table) -> None:
    """Extend a hash by the identity of each row: shard, key and checksum."""
    rows = zip(*(table.column(name).to_pylist() for name in IDENTITY), strict=True)
    digest.update("".join(f"{shard} {key} {sha256}\n" for shard, key, sha256 in rows).encode())


def checked_shard(shard: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a shard with plain values; ValueError if it is not a valid one."""
    if not re.fullmatch(r"[0-9a-f]{64}", shard["sha256"]):
        raise ValueError(f"shard: found sha256 {shard['sha256']!r}, expected 64 hexadecimal digits")
    return {**shard, "name": plain_name(shard["name"]), "bytes": int(shard["bytes"]), "samples": int(shard["samples"])}


def plain_name(name: str) -> str:
    """Return the name of a shard; ValueError if it is not a plain file name of a tar."""
    if Path(name).name != name or not name.lower().endswith(".tar"):
        raise ValueError(f"shard: found {name!r}, expected the plain name of a tar")
    return name
