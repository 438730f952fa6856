"""Parquet of strangers: what a file declares and what its cells would take is looked at before it is unpacked.

A text that stands in every row is in the file once, and a few kilobytes may mean gigabytes. So texts are read as
dictionaries, which hold each text once, and are weighed there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videodiff.data.samples.pages import HeaderError, Page, read_pages

# Bytes of one column of a row group, and values of a column of lists there, by what the file declares.
CHUNK, VALUES = 2**30, 2**27
# Bytes of pages beyond what the footer says of their column: not all writers count the headers.
MORE = 2**20
# Bytes that a value of a dictionary has at least.
LEAST = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 4}


class TooLargeError(ValueError):
    """A Parquet file that would take more memory than a file of its kind may, or that contradicts itself."""


class Pages(pq.ParquetFile):
    """A Parquet file whose pages are held against the footer before they are unpacked: TooLargeError where they lie."""

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
        """Yield the rows, so many at a time, one row group after the other."""
        for group in range(self.num_row_groups):
            self.check_group(group, None)
            yield from super().iter_batches(size, row_groups=[group])

    def check_group(self, group: int, columns: Collection[str] | None) -> None:
        """Raise where a column of a row group has pages that contradict the footer."""
        for number in range(self.metadata.num_columns):
            column = self.metadata.schema.column(number)
            if columns is None or column.path.partition(".")[0] in columns:
                check_pages(self.bytes, self.length, column, self.metadata.row_group(group).column(number))


def check_pages(file: BinaryIO, length: int, column: Any, chunk: Any) -> None:
    """Raise where the pages of a column of a row group unpack to more than the footer says."""
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
            # What follows the last value is never read.
            if values == chunk.num_values:
                return
    except HeaderError as error:
        raise TooLargeError(f"{where}: {error}") from error


def check_dictionary(page: Page, column: Any) -> None:
    """Raise where a dictionary says that it has more values than bytes for them."""
    least = LEAST.get(column.physical_type, max(column.length or 0, 1))
    if page.dictionary and page.values * least > page.unpacked:
        raise TooLargeError(
            f"column {column.path}: found a dictionary of {page.values} values in {page.unpacked} bytes, expected at "
            f"most {page.unpacked // least}"
        )


def open_parquet(file: BinaryIO, **options: Any) -> Pages:
    """Open a Parquet file whose texts come as dictionaries; TooLargeError by what it declares.

    options: those of `pyarrow.parquet.ParquetFile`.
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
    """Raise where one column of one row group declares too much."""
    if chunk.total_uncompressed_size > CHUNK:
        size = chunk.total_uncompressed_size
        raise TooLargeError(f"column {column.path}: found a row group of {size} bytes, expected at most {CHUNK}")
    if column.max_repetition_level and chunk.num_values > VALUES:
        raise TooLargeError(
            f"column {column.path}: found a row group of {chunk.num_values} values in lists, expected at most {VALUES}"
        )


def weight(array: pa.Array) -> int:
    """Return the bytes that an array takes once its dictionaries are unpacked."""
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
    """Return the bytes of the longest text of a column, 0 of one that is not of text."""
    if not pa.types.is_dictionary(array.type):
        return 0
    return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
