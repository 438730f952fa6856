"""The manifest: one Parquet row a sample, so that order, splits and sizes are known without opening a tar."""

from __future__ import annotations

import hashlib
import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NAME = "manifest.parquet"
VERSION = 1
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


class ManifestError(ValueError):
    """A dataset whose manifest cannot be used, or does not fit its shards."""


class Manifest:
    """The rows of a dataset and the list of its shards; `root` is the folder of both."""

    def __init__(self, root: Path, table: pa.Table, shards: list[dict[str, Any]]) -> None:
        self.root, self.table, self.shards = root, table, shards

    @classmethod
    def load(cls, root: str | Path) -> Manifest:
        """Read the manifest of a folder; every shard must be there in the size that the manifest says."""
        root = Path(root)
        path = root / NAME
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: found no such folder, expected a dataset")
        if not path.is_file():
            raise FileNotFoundError(f"{root}: found no {NAME}, expected a dataset as written by `videodiff pack`")
        try:
            table = pq.read_table(path)
            head = json.loads((table.schema.metadata or {})[b"videodiff"])
            shards = [
                {**shard, "name": plain_name(shard["name"]), "bytes": int(shard["bytes"])} for shard in head["shards"]
            ]
            version = head["version"]
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{path}: cannot be read as a manifest: {error}") from error
        if version != VERSION:
            raise ManifestError(f"{path}: found version {version!r}, expected {VERSION}")
        manifest = cls(root, table, shards)
        manifest.check()
        return manifest

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, index: int) -> dict[str, Any]:
        """Return one row as plain values."""
        return {name: self.table.column(name)[index].as_py() for name in self.table.column_names}

    def column(self, name: str) -> np.ndarray:
        """Return a column as a numpy array."""
        return self.table.column(name).to_numpy()

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of which clips there are and in which order, wherever the dataset lies."""
        digest = hashlib.sha256()
        for name in ("shard", "key", "sha256"):
            digest.update("\n".join(self.table.column(name).to_pylist()).encode() + b"\n\n")
        return digest.hexdigest()

    def check(self) -> None:
        """Raise where rows and shards on disk cannot belong together."""
        path = self.root / NAME
        for name, kind in FIELDS.items():
            found = self.table.schema.field(name).type if name in self.table.column_names else "none"
            if found != kind or self.table.column(name).null_count:
                raise ManifestError(f"{path}: column {name}: found {found}, expected {kind} without gaps")
        if len(self) == 0:
            raise ManifestError(f"{path}: found no samples, expected at least one")
        sizes = {shard["name"]: shard["bytes"] for shard in self.shards}
        for name, expected in sizes.items():
            if not (self.root / name).is_file():
                raise FileNotFoundError(f"{self.root / name}: found no such file, expected a shard of {expected} bytes")
            found = (self.root / name).stat().st_size
            if found != expected:
                raise ManifestError(f"{self.root / name}: found {found} bytes, expected {expected} as in the manifest")
        unknown = sorted(set(self.table.column("shard").unique().to_pylist()) - sizes.keys())
        if unknown:
            raise ManifestError(f"{path}: found rows of {unknown[0]!r}, expected only shards that it lists")
        self._check_places(sizes)

    def _check_places(self, sizes: dict[str, int]) -> None:
        offset, size = self.column("offset"), self.column("size")
        codes = self.table.column("shard").combine_chunks().dictionary_encode()
        room = np.array([sizes[name] for name in codes.dictionary.to_pylist()])[codes.indices.to_numpy()]
        outside = (offset < 0) | (size <= 0) | (offset > room - size) | (self.column("frames") < 1)
        if outside.any():
            row = self.row(int(np.argmax(outside)))
            raise ManifestError(
                f"{self.root / row['shard']}: {row['key']}: found {row['frames']} frames in {row['size']} bytes from "
                f"{row['offset']}, expected at least one, inside the shard's {sizes[row['shard']]}"
            )


def manifest_bytes(rows: list[dict[str, Any]], shards: list[dict[str, Any]]) -> bytes:
    """Return the file of a manifest; columns beyond the fixed ones are `score_*` numbers."""
    scores = sorted({name for row in rows for name in row} - FIELDS.keys())
    schema = pa.schema([*FIELDS.items(), *((name, pa.float64()) for name in scores)])
    head = json.dumps({"version": VERSION, "shards": shards})
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({"videodiff": head}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def plain_name(name: str) -> str:
    """Return the name of a shard; one that leads out of the dataset's folder is an error."""
    if Path(name).name != name or not name.endswith(".tar"):
        raise ValueError(f"shard: found {name!r}, expected the plain name of a tar")
    return name
