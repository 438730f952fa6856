"""Rows of JSONL, CSV and Parquet as a stream: memory holds one row, and a row that cannot be read costs no other."""

from __future__ import annotations

import ast
import codecs
import csv
import json
import lzma
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.compression import compr
from fsspec.utils import compressions, infer_compression

from data_prep.books.request import BadInput, ClipRequest, InputError, Place, show
from videodiff.data.samples.parquet import TooLargeError, open_parquet, weight
from videodiff.data.storage.address import bare_url
from videodiff.data.storage.listing import PICTURES, VIDEOS, Fault, Passed, Scan, ending_of
from videodiff.words import count_text

MAX_LINE = 4 * 2**20
MAX_CELL = 2**20
# Levels of lists in lists that a line of JSON may have: SQLite reads a thousand, Python about as many.
MAX_DEPTH = 100
BLOCK = 2**18
# After the first FREE bytes a file may unpack to EXPANSION times its size: text reaches 3 to 50, a bomb 1000.
EXPANSION, FREE = 300, 2**26
DELIMITERS = (",", ";", "\t", "|")
# The errors that a broken or truncated file raises, compressed or not.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, UnicodeDecodeError, TooLargeError)
Rows = Iterator[tuple[Place, dict[str, Any] | InputError]]
Items = Iterator[ClipRequest | BadInput]


def files_of(source: str | Path, *endings: str, passed: Passed | None = None) -> list[tuple[str, str | Fault]]:
    """Return name and path of a file, or of the files below a folder that have these endings, plain or compressed.

    The path of a file or folder that cannot be read is its fault. `passed` counts the files of a folder that are
    skipped, but for videos and pictures, which the files may name.
    """
    path = Path(source)
    if path.is_dir():
        skipped = Passed()
        items = sorted(Scan(path, with_packings(endings), skipped), key=lambda item: item.name)
        skipped = Passed({kind: count for kind, count in skipped.items() if kind.lower() not in VIDEOS + PICTURES})
        if not items:
            beside = f"; there are {skipped}" if skipped else ""
            raise ValueError(f"source: found no {' or '.join(endings)} below {path}, expected at least one{beside}")
        if passed is not None:
            passed.update(skipped)
        return [(item.name, item if isinstance(item, Fault) else str(item.path)) for item in items]
    if "://" in str(source):
        return [(name_of(source), str(source))]
    if not path.is_file():
        raise FileNotFoundError(f"source: found no {source}, expected a {' or '.join(endings)}, or a folder of them")
    return [(path.name, str(source))]


def with_packings(endings: Iterable[str]) -> set[str]:
    """Return endings, each plain and with each compression that is read."""
    return {ending + packing for ending in endings for packing in ("", *(f".{kind}" for kind in compressions))}


def read_files(found: Iterable[tuple[str, str | Fault]], read: Callable[[str, str], Rows]) -> Rows:
    """Yield the rows that `read` finds in each file; a file that cannot be read costs no other."""
    for name, path in found:
        try:
            if isinstance(path, Fault):
                raise InputError("unreadable-file", path.detail)
            yield from read(name, path)
        except InputError as error:
            yield Place(name), error
        except UNREADABLE as error:
            yield Place(name), unreadable(error)


def name_of(source: str | Path) -> str:
    """Return the name of a file, of one at a URL without its query."""
    url = bare_url(str(source)).partition("?")[0] if "://" in str(source) else ""
    return url.rpartition("/")[2] if url else Path(source).name


def open_binary(path: str) -> BinaryIO:
    """Open a file or a URL and decompress it; reading raises OSError if a small file unpacks to a huge one."""
    file, kind = opened(path), infer_compression(path.partition("?")[0] if "://" in path else path)
    return Unpacked(file, compr[kind](file, mode="rb")) if kind else file


def opened(path: str) -> BinaryIO:
    """Open a file, or a URL as it is given."""
    options = {"encoded": True, "client_kwargs": {"trust_env": True}} if path.startswith("http") else {}
    return fsspec.open(path, "rb", **options if "://" in path else {}).open()


class Unpacked:
    """The content of a compressed file; reading raises OSError if it is out of proportion to the file."""

    def __init__(self, packed: BinaryIO, file: BinaryIO) -> None:
        self.packed, self.file, self.found = packed, file, 0

    def __enter__(self) -> Unpacked:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.packed.close()

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.found += len(data)
        if self.found > FREE + EXPANSION * self.packed.tell():
            raise OSError(
                f"found over {EXPANSION} times its size after unpacking, expected metadata, which compresses less"
            )
        return data


def to_items(rows: Rows, parse: Callable[[Place, dict[str, Any]], Iterable[ClipRequest | BadInput]]) -> Items:
    """Yield what `parse` makes of every row; an InputError becomes the BadInput of that row."""
    for place, row in rows:
        try:
            if isinstance(row, InputError):
                raise row
            yield from parse(place, row)
        except InputError as error:
            yield BadInput(place, error.reason, error.detail)


def json_rows(source: str | Path, passed: Passed | None = None) -> Rows:
    """Yield the objects of JSON lines; empty lines are left out."""

    def read(name: str, path: str) -> Rows:
        with open_binary(path) as file:
            lines = ((number, line) for number, line in bounded_lines(file) if not line.isspace())
            first = list(islice(lines, 2))
            if found := whole_document([line for _, line in first]):
                raise InputError("unreadable-file", f"found one JSON {found}, expected JSON lines: an object a line")
            for number, line in chain(first, lines):
                yield Place(name, number), parse_json(line)

    return read_files(files_of(source, ".jsonl", passed=passed), read)


def whole_document(lines: Sequence[bytes]) -> str:
    """Return `array`, or `object over several lines`, if the first two lines of a file begin one; else nothing.

    A line that is whole by itself stands in no such value: it costs no other, whatever it holds, and no other costs it.
    """
    start = lines[0].removeprefix(codecs.BOM_UTF8).strip() if lines else b""
    if any(map(is_json, lines[1:])):
        return ""
    if start == b"{":
        return "object over several lines"
    if start.startswith(b"[") and (len(lines) == 1 or not is_json(start)):
        return "array"
    return ""


def is_json(text: bytes) -> bool:
    """Tell whether a text is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def parse_json(line: bytes) -> dict[str, Any] | InputError:
    """Return the object of one line, or what is wrong with it."""
    try:
        row = json.loads(checked_length(line).decode("utf-8-sig"))
    except InputError as error:
        return error
    except (ValueError, RecursionError) as error:
        return InputError("malformed-line", f"found no JSON: {show(str(error))}")
    return row if isinstance(row, dict) else InputError("malformed-line", f"found {show(row)}, expected an object")


def csv_rows(source: str | Path, *columns: str, passed: Passed | None = None) -> Rows:
    """Yield the records of CSV files with a header, which must have these columns; empty lines are left out.

    Line ends of any system are accepted. The delimiter is the one of the header: comma, semicolon, tab or bar. A quote
    without its closing quote swallows the lines after it: the reader then goes back to the first swallowed line.
    """
    csv.field_size_limit(MAX_CELL)

    def read(name: str, path: str) -> Rows:
        with open_binary(path) as file:
            lines = Rewound(bounded_lines(file))
            delimiter, header = read_header(name, lines, columns)
            yield from csv_records(name, header, lines, delimiter)

    return read_files(files_of(source, ".csv", ".tsv", passed=passed), read)


def read_header(name: str, lines: Rewound, columns: Sequence[str]) -> tuple[str, list[str]]:
    """Return the delimiter of a table and the names of its columns; raise if a wanted column is missing."""
    text = next((line for line in lines if line.strip("\ufeff \r\n") and not re.match(r"\ufeff?sep=.\s*$", line)), "")
    if "\0" in text or text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise InputError("unreadable-file", f"found {show(text)}, expected a table in UTF-8: save it so")
    lines.taken.clear()
    headers = {}
    for delimiter in DELIMITERS:
        try:
            cells = next(csv.reader(chain([text], lines), delimiter=delimiter), [])
        except csv.Error as error:
            raise InputError("unreadable-file", f"found no header in the first line: {error}") from error
        headers[delimiter] = [cell.removeprefix("\ufeff").strip() for cell in cells]
        lines.rewind_all()
    fits = lambda delimiter: (  # noqa: E731
        sum(column not in headers[delimiter] for column in columns),
        -len(headers[delimiter]),
    )
    best = min(DELIMITERS, key=fits)
    check_columns(name, headers[best], columns)
    # The lines of a header whose cells hold line ends.
    next(csv.reader(chain([text], lines), delimiter=best), None)
    return best, headers[best]


def check_columns(name: str, found: list[str], expected: Iterable[str]) -> None:
    """Raise where a table lacks a column, or has one twice."""
    if missing := [column for column in expected if column not in found]:
        raise ValueError(f"{name}: found columns {show(', '.join(found))}, expected also {', '.join(missing)}")
    if twice := [column for column in expected if found.count(column) > 1]:
        raise ValueError(f"{name}: found the column {', '.join(twice)} twice, expected it once")


def csv_records(name: str, header: list[str], lines: Rewound, delimiter: str) -> Rows:
    """Yield the records below a header."""
    while True:
        lines.taken.clear()
        try:
            cells = next(csv.reader(lines, strict=True, delimiter=delimiter), None)
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
        return InputError("malformed-line", f"found {count_text(len(cells), 'cell')}, expected {len(header)}")
    for cell in cells:
        if "\0" in cell:
            return InputError("malformed-line", f"found a NUL byte in {show(cell)}, expected text")
        if not cell.isascii() and not cell.isprintable() and re.search(r"[\ud800-\udfff]", cell):
            return InputError("malformed-line", "found bytes that are not UTF-8")
    return dict(zip(header, cells, strict=True))


class Rewound:
    """Lines as text; `rewind` gives back every line taken since `taken` was cleared, except the first."""

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

    def rewind_all(self) -> None:
        self.waiting.extendleft(reversed(self.taken))
        self.taken.clear()


def bounded_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of every line, with line ends of any system; lines are cut off after `MAX_LINE` bytes."""
    number, rest, cut = 0, b"", False
    while block := file.read(BLOCK):
        # The rest of a line that is cut off is read but not kept.
        lines = (rest + block).splitlines(keepends=True)
        # After a \r at the end of a block a \n may follow.
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        for line in lines:
            if not cut:
                number += 1
                yield number, line[:MAX_LINE]
            cut = False
        if len(rest) > MAX_LINE and not rest.endswith(b"\r"):
            if not cut:
                number += 1
                yield number, rest[:MAX_LINE]
            rest, cut = b"", True
    if rest and not cut:
        yield number + 1, rest[:MAX_LINE]


def checked_length(line: bytes) -> bytes:
    """Return a whole line; an InputError where it was cut."""
    if len(line) == MAX_LINE and not line.endswith((b"\n", b"\r")):
        raise InputError("malformed-line", f"found over {MAX_LINE} bytes, expected a shorter line")
    return line


def parquet_rows(source: str | Path, *columns: str, batch: int = 500, passed: Passed | None = None) -> Rows:
    """Yield the rows of Parquet files, which must have these columns; the line of a place is the number of the row."""

    def read(name: str, path: str) -> Rows:
        with opened(path) as file, open_parquet(file) as table:
            check_columns(name, table.schema_arrow.names, columns)
            found = (row for rows in table.iter_batches(batch) for row in batch_rows(rows))
            yield from ((Place(name, number), row) for number, row in enumerate(found, 1))

    return read_files(files_of(source, ".parquet", passed=passed), read)


def jsonl_rows(source: str | Path, *columns: str, passed: Passed | None = None) -> Rows:
    """Yield the rows of JSON lines as the other readers do; each row may lack a column."""
    return json_rows(source, passed)


READERS: dict[str, Callable[..., Rows]] = {
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".jsonl": jsonl_rows,
    ".parquet": parquet_rows,
}


def reader_of(name: str) -> Callable[..., Rows] | None:
    """Return what reads a table by its ending, plain or compressed; None if the ending is another."""
    ending = ending_of(name).lower()
    return next((reader for own, reader in READERS.items() if ending in with_packings([own])), None)


def batch_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | InputError]:
    """Yield the rows of a batch; a row that is too large, or has an unreadable cell, becomes an InputError."""
    # If all rows together are within the limit, so is each of them.
    heavy = sum(map(weight, batch.columns)) > MAX_LINE
    try:
        rows = [] if heavy else as_dicts(batch)
    except (ValueError, OverflowError, pa.ArrowException) as error:
        rows, heavy = [], True
        if len(batch) == 1:
            yield InputError("bad-cell", f"found a cell that cannot be read: {show(str(error))}")
            return
    if heavy and len(batch) == 1:
        yield InputError("malformed-line", f"found a row of over {MAX_LINE} bytes, expected a shorter one")
    elif heavy:
        middle = len(batch) // 2
        yield from batch_rows(batch.slice(0, middle))
        yield from batch_rows(batch.slice(middle))
    yield from rows


def as_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows as plain values."""
    columns = [plain_values(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def plain_values(column: pa.Array) -> list[Any]:
    """Return a column as plain values; a 32-bit number becomes its shortest decimals, as a text file would write it."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    elif pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us"), safe=False)
    elif pa.types.is_time64(kind):
        column = column.cast(pa.time64("us"), safe=False)
    elif pa.types.is_duration(kind):
        column = column.cast(pa.duration("us"), safe=False)
    elif pa.types.is_map(kind):
        return [None if pairs is None else dict(pairs) for pairs in column.to_pylist()]
    elif pa.types.is_float32(kind):
        return [None if value is None else float(str(np.float32(value))) for value in column.to_pylist()]
    return column.to_pylist()


def unreadable(error: Exception) -> InputError:
    """Return the error for a file that cannot be read any further."""
    return InputError("unreadable-file", f"found a file that cannot be read to its end: {show(str(error))}")


def parse_literal(text: Any, gaps: bool = False) -> Any:
    """Return the value of a Python literal; code is never run: it is an InputError. `gaps`: nan and null are None."""
    if not isinstance(text, str) or len(text) > MAX_CELL:
        raise InputError("bad-cell", f"found {show(text)}, expected a list of up to {MAX_CELL} letters")
    try:
        tree = ast.parse(text.strip(" \t"), mode="eval")
        value = ast.literal_eval(Gaps().visit(tree) if gaps else tree)
        json.dumps(value, allow_nan=False)  # what cannot be written down: bytes, sets, numbers of thousands of digits
        return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError("bad-cell", f"found {show(text)}, expected a literal list and no code") from error


class Gaps(ast.NodeTransformer):
    """Replace names for a missing value by None."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(None) if node.id.lower() in ("nan", "null", "na") else node


def parse_notes(text: Any, length: int) -> list[Any] | None:
    """Return a literal list of this length whose values become notes, None where the cell holds no such list."""
    try:
        values = parse_literal(text, gaps=True)
    except InputError:
        return None
    return values if isinstance(values, list) and len(values) == length else None


def parse_list(text: Any) -> list[Any]:
    """Return the list of a literal cell; anything else is an InputError."""
    value = parse_literal(text)
    if not isinstance(value, list):
        raise InputError("bad-cell", f"found {show(text)}, expected a list")
    return value
