"""Parquet of strangers: what a file declares and what its cells would take is looked at before it is unpacked.

A text that stands in every row is in the file once, and a few kilobytes may mean gigabytes. So texts are read as
dictionaries, which hold each text once, and are weighed there.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Bytes of one column of a row group, and values of a column of lists there, by what the file declares.
CHUNK, VALUES = 2**30, 2**27


class TooLargeError(ValueError):
    """A Parquet file that would take more memory than a file of its kind may."""


def open_parquet(file: BinaryIO, **options: Any) -> pq.ParquetFile:
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
    return pq.ParquetFile(file, metadata=found, read_dictionary=texts, **options)


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
