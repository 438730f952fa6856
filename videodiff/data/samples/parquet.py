"""Parquet files from strangers: check the sizes that a file declares before any of it is unpacked.

A text that repeats in every row is stored once, so a few kilobytes may unpack to gigabytes. Therefore texts are read
as dictionaries, which hold each text once, and their unpacked size is computed from there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videodiff.data.samples.pages import HeaderError, Page, read_pages

# Limits on what a file declares: bytes per column of a row group, and values per column of lists.
CHUNK, VALUES = 2**30, 2**27
# Pages may exceed the size in the footer by so many bytes: some writers do not count the page headers.
MORE = 2**20
# Least bytes of a value in a dictionary, by type.
LEAST = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 4}


class TooLargeError(ValueError):
    """A Parquet file that would need too much memory, or that contradicts itself."""


class Pages(pq.ParquetFile):
    """A Parquet file; before pages are unpacked they are compared with the footer, TooLargeError if they differ."""

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        self.bytes, self.length = file, file.seek(0, os.SEEK_END)

    def read_row_groups(self, groups: Iterable[int], columns: Collection[str] | None = None) -> pa.Table:
        """Return the columns of these row groups."""
        groups = list(groups)
        for group in groups:
            self.check_group(group, columns)
        return super().read_row_groups(groups, columns=columns)

    def iter_batches(self, size: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of `size` rows, one row group after the other."""
        for group in range(self.num_row_groups):
            self.check_group(group, None)
            yield from super().iter_batches(size, row_groups=[group])

    def check_group(self, group: int, columns: Collection[str] | None) -> None:
        """Raise if a column of a row group has pages that contradict the footer."""
        for number in range(self.metadata.num_columns):
            column = self.metadata.schema.column(number)
            if columns is None or column.path.partition(".")[0] in columns:
                check_pages(self.bytes, self.length, column, self.metadata.row_group(group).column(number))


def check_pages(file: BinaryIO, length: int, column: Any, chunk: Any) -> None:
    """Raise if the pages of one column of a row group unpack to more than the footer states."""
    start = min(place for place in (chunk.dictionary_page_offset, chunk.data_page_offset) if place is not None)
    end = start + chunk.total_compressed_size
    where, said = f"column {column.path}", chunk.total_uncompressed_size
    if not 0 <= start <= end <= length:
        raise TooLargeError(f"{where}: found a row group from byte {start} to {end}, expected one in {length} bytes")
    unpacked = values = 0
    try:
        for page in read_pages(file, start, end):
            check_dictionary(page, column)
            unpacked, values = unpacked + page.unpacked, values + page.values * (not page.dictionary)
            if unpacked > said + MORE:
                raise TooLargeError(f"{where}: found pages of {unpacked} bytes, expected {said} as the footer says")
            if values > chunk.num_values:
                expected = f"expected {chunk.num_values} as the footer says"
                raise TooLargeError(f"{where}: found pages of {values} values, {expected}")
            # pyarrow reads no page after the last value.
            if values == chunk.num_values:
                return
    except HeaderError as error:
        raise TooLargeError(f"{where}: {error}") from error


def check_dictionary(page: Page, column: Any) -> None:
    """Raise if a dictionary states more values than fit into its bytes."""
    least = LEAST.get(column.physical_type, max(column.length or 0, 1))
    if page.dictionary and page.values * least > page.unpacked:
        raise TooLargeError(
            f"column {column.path}: found a dictionary of {page.values} values in {page.unpacked} bytes, expected at "
            f"most {page.unpacked // least}"
        )


def open_parquet(file: BinaryIO, **options: Any) -> Pages:
    """Open a Parquet file and read its texts as dictionaries; TooLargeError if it declares too much.

    `options` are passed to `pyarrow.parquet.ParquetFile`.
    """
    found = pq.read_metadata(file)
    columns = [found.schema.column(number) for number in range(found.num_columns)]
    for group in map(found.row_group, range(found.num_row_groups)):
        for number, column in enumerate(columns):
            check_chunk(column, group.column(number))
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    file.seek(0)
    return Pages(file, metadata=found, read_dictionary=texts, **options)


def check_chunk(column: Any, chunk: Any) -> None:
    """Raise if one column of one row group declares too much."""
    if chunk.total_uncompressed_size > CHUNK:
        size = chunk.total_uncompressed_size
        raise TooLargeError(f"column {column.path}: found a row group of {size} bytes, expected at most {CHUNK}")
    if column.max_repetition_level and chunk.num_values > VALUES:
        raise TooLargeError(
            f"column {column.path}: found a row group of {chunk.num_values} values in lists, expected at most {VALUES}"
        )


def weight(array: pa.Array) -> int:
    """Return the bytes of an array after its dictionaries are unpacked."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary)
        return 8 * len(array) + (pc.sum(pc.take(lengths, array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(map(weight, array.flatten()))
    if pa.types.is_map(kind):
        return weight(array.keys) + weight(array.items)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return 8 * len(array) + weight(array.flatten())
    return array.nbytes


def longest_text(array: pa.Array) -> int:
    """Return the bytes of the longest text of a column, 0 if the column has no texts."""
    if not pa.types.is_dictionary(array.type):
        return 0
    return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
