"""Rows of JSONL, CSV and Parquet as a stream: memory holds one row, and a row that cannot be read costs no other."""

from __future__ import annotations

import ast
import csv
import json
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.request import BadInput, ClipRequest, InputError, Place, show

MAX_LINE = 4 * 2**20
MAX_CELL = 2**20
# What a broken or cut file raises, also a compressed one.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, UnicodeDecodeError)
Rows = Iterator[tuple[Place, dict[str, Any] | InputError]]
Items = Iterator[ClipRequest | BadInput]


def files_of(source: str | Path, *endings: str) -> list[tuple[str, str]]:
    """Return name and path of a file, or of the files below a folder that end so (also with `.gz` or `.xz`)."""
    path = Path(source)
    if path.is_dir():
        files = [file for file in path.rglob("*") if any(e.lower() in endings for e in file.suffixes[-2:])]
        names = [file.relative_to(path).as_posix() for file in files]
        if not names:
            raise ValueError(f"source: found no {' or '.join(endings)} below {path}, expected at least one")
        return [(name, str(path / name)) for name in sorted(names)]
    if "://" not in str(source) and not path.is_file():
        raise FileNotFoundError(f"source: found no {source}, expected a {' or '.join(endings)}, or a folder of them")
    return [(path.name, str(source))]


def open_binary(path: str) -> BinaryIO:
    """Open a file or a URL, uncompressed on the way."""
    return fsspec.open(path, "rb", compression="infer").open()


def to_items(rows: Rows, parse: Callable[[Place, dict[str, Any]], Iterable[ClipRequest | BadInput]]) -> Items:
    """Yield what `parse` makes of every row; an InputError becomes the BadInput of that row."""
    for place, row in rows:
        try:
            if isinstance(row, InputError):
                raise row
            yield from parse(place, row)
        except InputError as error:
            yield BadInput(place, error.reason, error.detail)


def json_rows(source: str | Path) -> Rows:
    """Yield the objects of JSON lines; empty lines are left out."""
    for name, path in files_of(source, ".jsonl"):
        try:
            with open_binary(path) as file:
                for number, line in bounded_lines(file):
                    if not line.isspace():
                        yield Place(name, number), parse_json(line)
        except UNREADABLE as error:
            yield Place(name), unreadable(error)


def parse_json(line: bytes) -> dict[str, Any] | InputError:
    """Return the object of one line, or what is wrong with it."""
    try:
        row = json.loads(checked_length(line).decode("utf-8-sig"))
    except InputError as error:
        return error
    except (ValueError, RecursionError) as error:
        return InputError("malformed-line", f"found no JSON: {show(str(error))}")
    return row if isinstance(row, dict) else InputError("malformed-line", f"found {show(row)}, expected an object")


def csv_rows(source: str | Path, *columns: str) -> Rows:
    """Yield the records of CSV files with a header, which must have these columns; empty lines are left out.

    A quote that nobody closes swallows the lines after it: the reader then goes back to the second of them.
    """
    csv.field_size_limit(MAX_CELL)
    for name, path in files_of(source, ".csv"):
        try:
            with open_binary(path) as file:
                lines = Rewound(bounded_lines(file))
                header = next(csv.reader(lines), [])
                header = [column.removeprefix("\ufeff").strip() for column in header]
                check_columns(name, header, columns)
                yield from csv_records(name, header, lines)
        except UNREADABLE as error:
            yield Place(name), unreadable(error)


def check_columns(name: str, found: list[str], expected: Iterable[str]) -> None:
    """Raise where a table lacks a column."""
    if missing := [column for column in expected if column not in found]:
        raise ValueError(f"{name}: found columns {show(', '.join(found))}, expected also {', '.join(missing)}")


def csv_records(name: str, header: list[str], lines: Rewound) -> Rows:
    """Yield the records below a header."""
    while True:
        lines.taken.clear()
        try:
            cells = next(csv.reader(lines, strict=True), None)
        except (csv.Error, InputError) as error:
            detail = error.detail if isinstance(error, InputError) else f"found no CSV record: {error}"
            yield Place(name, lines.taken[0][0]), InputError("malformed-line", detail)
            lines.rewind()
            continue
        if cells is None:
            return
        if cells:
            yield Place(name, lines.taken[0][0]), csv_record(header, cells)


def csv_record(header: list[str], cells: list[str]) -> dict[str, Any] | InputError:
    """Return the cells by column, or what is wrong with them."""
    if len(cells) != len(header):
        return InputError("malformed-line", f"found {len(cells)} cells, expected {len(header)}")
    if any(0xD800 <= ord(letter) < 0xE000 for cell in cells if not cell.isascii() for letter in cell):
        return InputError("malformed-line", "found bytes that are not UTF-8")
    return dict(zip(header, cells, strict=True))


class Rewound:
    """Lines as text, of which those after the first since `taken` was cleared can be given back."""

    def __init__(self, numbered: Iterator[tuple[int, bytes]]) -> None:
        self.numbered = numbered
        self.taken: list[tuple[int, bytes]] = []
        self.waiting: deque[tuple[int, bytes]] = deque()

    def __iter__(self) -> Rewound:
        return self

    def __next__(self) -> str:
        self.taken.append(self.waiting.popleft() if self.waiting else next(self.numbered))
        return checked_length(self.taken[-1][1]).decode("utf-8", "surrogateescape")

    def rewind(self) -> None:
        self.waiting.extendleft(reversed(self.taken[1:]))


def bounded_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of every line; of a line beyond `MAX_LINE` only its first `MAX_LINE` bytes."""
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        yield number, line
        while len(line) == MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)


def checked_length(line: bytes) -> bytes:
    """Return a whole line; an InputError where it was cut."""
    if len(line) == MAX_LINE and not line.endswith(b"\n"):
        raise InputError("malformed-line", f"found over {MAX_LINE} bytes, expected a shorter line")
    return line


def parquet_rows(source: str | Path, *columns: str, batch: int = 1000) -> Rows:
    """Yield the rows of Parquet files, which must have these columns; the line of a place is the number of the row."""
    for name, path in files_of(source, ".parquet"):
        try:
            number = 0
            with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as table:
                check_columns(name, table.schema_arrow.names, columns)
                for rows in table.iter_batches(batch):
                    for row in rows.to_pylist():
                        number += 1
                        yield Place(name, number), row
        except UNREADABLE as error:
            yield Place(name), unreadable(error)


def unreadable(error: Exception) -> InputError:
    """Return what is wrong with a file of which no further row can be read."""
    return InputError("unreadable-file", f"found a file that cannot be read to its end: {show(str(error))}")


def parse_literal(text: Any) -> Any:
    """Return the value of a Python literal; code is never run: it is an InputError."""
    if not isinstance(text, str) or len(text) > MAX_CELL:
        raise InputError("bad-cell", f"found {show(text)}, expected a list of up to {MAX_CELL} letters")
    try:
        value = ast.literal_eval(text)
        json.dumps(value, allow_nan=False)  # what cannot be written down: bytes, sets, numbers of thousands of digits
        return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError("bad-cell", f"found {show(text)}, expected a literal list and no code") from error


def parse_list(text: Any) -> list[Any]:
    """Return the list of a literal cell; anything else is an InputError."""
    value = parse_literal(text)
    if not isinstance(value, list):
        raise InputError("bad-cell", f"found {show(text)}, expected a list")
    return value
