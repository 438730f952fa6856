"""Parquet files whose pages contradict their footer, made by patching numbers in files that a writer wrote."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.table import read_table
from tests.material.made_clips import write_dataset
from videodiff.data.samples.manifest import Manifest, ManifestError
from videodiff.data.samples.pages import read_pages
from videodiff.data.samples.parquet import TooLargeError, open_parquet

MIB = 2**20
# Where the header of the first page has its sizes: after the magic, the type of the page and the type of the field.
FIRST = 4 + 3


def varint(number: int, length: int = 0) -> bytes:
    """Return a number as Thrift writes one, seven bits a byte, padded to a length."""
    zigzag, out = 2 * number, bytearray()
    while zigzag > 127 or len(out) < length - 1:
        out.append(zigzag & 127 | 128)
        zigzag >>= 7
    return bytes([*out, zigzag])


def written(table: pa.Table, **how) -> bytearray:
    file = io.BytesIO()
    pq.write_table(table, file, **{"compression": "zstd", **how})
    return bytearray(file.getvalue())


def patched(data: bytearray, place: int, number: int) -> bytearray:
    """Return a file with another number at a place, of whatever length."""
    end = place
    while data[end] & 128:
        end += 1
    return data[:place] + varint(number) + data[end + 1 :]


def chunk_of(data: bytes) -> object:
    return pq.read_metadata(io.BytesIO(data)).row_group(0).column(0)


TEXTS = pa.table({"path": [f"{number}.mp4" for number in range(1000)]})
NESTED = pa.table(
    {
        "path": [f"{number}.mp4" for number in range(6000)],
        "captions": [["a", None, "long " * 30][: number % 4] for number in range(6000)],
        "span": [{"start": number / 3, "end": None} for number in range(6000)],
        "kept": [number % 2 == 0 for number in range(6000)],
    }
)
WRITERS = {
    "plain": {"use_dictionary": False},
    "dictionary": {},
    "second version": {"data_page_version": "2.0"},
    "uncompressed": {"compression": "none"},
    "gzip": {"compression": "gzip"},
    "small pages": {"data_page_size": 256, "write_batch_size": 16},
    "checksums": {"write_page_checksum": True},
    "statistics in headers": {"write_statistics": True, "data_page_size": 256, "dictionary_pagesize_limit": 64},
    "several groups": {"row_group_size": 2500, "write_page_index": True},
}


@pytest.mark.parametrize("name", WRITERS)
def test_honest_files_are_read_as_they_are(name):
    data = written(NESTED, **WRITERS[name])
    with open_parquet(io.BytesIO(data)) as table:
        groups = [table.read_row_groups([group]) for group in range(table.num_row_groups)]
        batches = list(table.iter_batches(777))
        metadata = table.metadata
    assert [row for group in groups for row in group.to_pylist()] == NESTED.to_pylist()
    assert [row for batch in batches for row in batch.to_pylist()] == NESTED.to_pylist()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            pages = list(read_pages(io.BytesIO(data), start, start + chunk.total_compressed_size))
            assert sum(page.values for page in pages if not page.dictionary) == chunk.num_values
            assert 0 < sum(page.unpacked for page in pages) <= chunk.total_uncompressed_size


def lying_size(**how) -> bytes:
    """Return a file whose first page says that it unpacks to 2 GiB."""
    return bytes(patched(written(TEXTS, **how), FIRST, 2**31 - 1))


def lying_dictionary() -> bytes:
    """Return a file whose dictionary says that it has two thousand million values."""
    data = written(TEXTS)
    at = data.index(varint(1000), FIRST)
    return bytes(patched(data, at, 2**31 - 1))


def lying_count() -> bytes:
    """Return a file whose page of data says that it has more values than its column."""
    data = written(TEXTS, use_dictionary=False)
    return bytes(patched(data, data.index(varint(1000), FIRST), 2**31 - 1))


def lying_end() -> bytes:
    """Return a file whose footer says that its column ends behind the file."""
    data = written(TEXTS, use_dictionary=False)
    size = chunk_of(data).total_compressed_size
    at, length = data.index(varint(size), 4 + size), len(varint(size))
    return bytes(data[:at] + varint(2 ** (7 * length - 1) - 1, length) + data[at + length :])


LIES = {
    "size": (lying_size, "found pages of 2147483647 bytes"),
    "size of plain text": (lambda: lying_size(use_dictionary=False), "found pages of 2147483647 bytes"),
    "size, second version": (
        lambda: lying_size(use_dictionary=False, data_page_version="2.0"),
        "found pages of 2147483647 bytes",
    ),
    "dictionary": (lying_dictionary, "found a dictionary of 2147483647 values in"),
    "count": (lying_count, "found pages of 2147483647 values, expected 1000 as the footer says"),
    "end": (lying_end, "expected one in"),
    "no header": (lambda: bytes(written(TEXTS)[:4] + bytes([0xFF] * 40) + written(TEXTS)[44:]), "in the header"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_page_that_contradicts_the_footer_is_refused_before_room_is_made_for_it(name, tmp_path):
    make, message = LIES[name]
    path = tmp_path / "list.parquet"
    path.write_bytes(make())
    before = pa.total_allocated_bytes()
    with path.open("rb") as file, pytest.raises(TooLargeError, match=f"column path: .*{message}"):
        open_parquet(file).read_row_groups([0])
    assert pa.total_allocated_bytes() - before < MIB
    (found,) = read_table(path, {"video": "path"})
    assert found.reason == "unreadable-file"
    assert message in found.detail


def test_a_manifest_whose_pages_lie_is_refused(tmp_path):
    root = write_dataset(tmp_path)
    path = root / "manifest.parquet"
    path.write_bytes(patched(bytearray(path.read_bytes()), FIRST, 2**31 - 1))
    with pytest.raises(ManifestError, match=r"manifest\.parquet: .*found pages of 2147483647 bytes"):
        Manifest.load(root)


CHILD = """
import re, sys
import pyarrow.parquet as pq
from videodiff.data.samples.parquet import TooLargeError, open_parquet

def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

before = most()
with open(sys.argv[1], "rb") as file:
    try:
        open_parquet(file).read_row_groups([0])
    except TooLargeError as error:
        print(error)
print(most() - before)
with open(sys.argv[1], "rb") as file:
    pq.ParquetFile(file).read_row_groups([0])
print(most() - before)
"""


def test_a_page_that_does_unpack_to_much_more_than_is_said_takes_no_memory(tmp_path):
    data = written(pa.table({"path": ["x" * (96 * MIB)]}), use_dictionary=False, write_statistics=False)
    chunk = chunk_of(data)
    said = varint(chunk.total_uncompressed_size)
    at = data.index(said, 4 + chunk.total_compressed_size)
    path = Path(tmp_path, "bomb.parquet")
    path.write_bytes(data[:at] + varint(1000, len(said)) + data[at + len(said) :])
    assert path.stat().st_size < MIB
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
    refused, ours, others = done.stdout.splitlines()
    assert "expected 1000 as the footer says" in refused
    assert int(ours) < 32 < 96 <= int(others)
