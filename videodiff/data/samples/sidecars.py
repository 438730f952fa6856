"""Captions and notes of a video, read from its txt, json and csv files; folders and tars share this reader."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from videodiff.data.storage.address import bare_url

# Extensions of the members that `read_texts` and `read_notes` read.
SIDECARS = ("txt", "json", "csv")
# Entries of a JSON, and columns of a CSV, that are captions.
CAPTIONS = ("caption", "captions", "text")
# The most bytes of one sidecar, and of a text in the row of a manifest.
TEXT_LIMIT, ROW_LIMIT = 2**22, 2**12
# Longer marks first: the mark of UTF-32 begins with the mark of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class SidecarError(ValueError):
    """A file beside a video that cannot be read."""


class CaptionError(SidecarError):
    """A caption that is not text."""


class Text(NamedTuple):
    """A caption, and who wrote it; `origin` is empty if unknown."""

    text: str
    origin: str = ""


def read_captions(members: Mapping[str, bytes]) -> list[str]:
    """Return the captions of a sample, see `read_texts`."""
    return [caption.text for caption in read_texts(members)]


def read_texts(members: Mapping[str, bytes]) -> list[Text]:
    """Return the captions of a sample, without repetitions; `members` has its files by extension.

    The caption of the txt comes first. The entries `caption`, `captions` and `text` of the json follow, see `entries`,
    then the csv column with one of these names. `caption_origins` in the json states the origins if it has as many
    items as there are captions. White space is collapsed, and blank captions are dropped.
    """
    notes = read_notes(members)
    found = [caption for field in CAPTIONS for caption in entries(notes.get(field), f"json: {field}")]
    if plain := tidy(decode_text(members.get("txt", b""), "txt"), "txt"):
        same = next((caption for caption in found if caption.text == plain), Text(plain))
        found = [same, *(caption for caption in found if caption is not same)]
    found = [caption for caption in [*found, *(rows(members["csv"]) if "csv" in members else ())] if caption.text]
    origins = notes.get("caption_origins")
    if isinstance(origins, list) and len(origins) == len(found):
        found = [Text(caption.text, caption.origin or str(name)) for caption, name in zip(found, origins, strict=True)]
    return list(dict.fromkeys(found))


def read_notes(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the json of a sample, an empty dict if it has none."""
    text = decode_text(members.get("json", b""), "json")
    try:
        notes = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise SidecarError(f"json: found no JSON: {error}") from error
    if not isinstance(notes, dict):
        raise SidecarError(f"json: found {type(notes).__name__}, expected an object")
    return notes


def decode_text(data: bytes, name: str) -> str:
    """Decode text as UTF-8, or as the byte order mark at its start says; SidecarError if it is neither."""
    if not data:
        return ""
    if len(data) > TEXT_LIMIT:
        raise SidecarError(f"{name}: found {len(data)} bytes, expected at most {TEXT_LIMIT}")
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    encoding = MARKS.get(mark, "utf-8")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise SidecarError(
            f"{name}: found a byte {data[len(mark) + error.start]:#04x} that is not {encoding.upper()}, expected UTF-8 "
            f"or UTF-16 with its mark: convert the file, for example by iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    if "\0" in text:
        raise SidecarError(f"{name}: found NUL characters, expected UTF-8, or UTF-16 with its mark")
    return text


def entries(value: Any, where: str) -> Iterator[Text]:
    """Yield the captions of an entry of the json.

    An entry is null, a text, `{caption, origin}`, a list of these, or an object of captions by name. For example
    `{"short": ..., "long": ...}` has two captions. `origin` beside the names is the default origin of its captions.
    """
    for item in value if isinstance(value, list) else [value]:
        named = isinstance(item, dict) and item and not item.keys() & {"caption", "text"}
        if not named:
            yield one_caption(item, where)
            continue
        for name in (name for name in item if name != "origin"):
            yield from by_name(item[name], f"{where}: {name}", str(item.get("origin") or ""))


def by_name(value: Any, where: str, origin: str) -> Iterator[Text]:
    """Yield the captions under one name: like an entry, but without further names."""
    for item in value if isinstance(value, list) else [value]:
        found = one_caption(item, where)
        yield found._replace(origin=found.origin or origin)


def one_caption(item: Any, where: str) -> Text:
    """Return a text or `{caption, origin}` as a caption, an empty one for null."""
    if isinstance(item, str):
        return Text(tidy(item, where))
    entry = item if isinstance(item, dict) else {"caption": item}
    text = entry["caption"] if entry.get("caption") is not None else entry.get("text")
    if (text is None and entry is item) or not (text is None or isinstance(text, str)):
        raise CaptionError(f"{where}: found {ascii(item)[:100]}, expected text or a list of texts")
    return Text(tidy(text or "", where), str(entry.get("origin") or ""))


def rows(data: bytes) -> Iterator[Text]:
    """Yield the captions of a csv with a header; none if no column is named like captions."""
    text = decode_text(data, "csv")
    try:
        for delimiter in ",;\t|":
            lines = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter)
            header = [column.strip().lower() for column in next(lines, [])]
            place = next((header.index(name) for name in CAPTIONS if name in header), None)
            by = header.index("origin") if "origin" in header else len(header)
            if place is not None:
                for cells in (cells for cells in lines if len(cells) > place):
                    yield Text(tidy(cells[place], "csv"), cells[by].strip() if by < len(cells) else "")
                return
    except csv.Error as error:
        raise SidecarError(f"csv: found no CSV: {error}") from error


def provenance(notes: Mapping[str, Any]) -> dict[str, str]:
    """Return source and licence of a sample as one line each, fit to be shared: without the secrets of a URL.

    The source is the entry `source`, or else `url`. What is neither text nor a number is left out.
    """
    found = {}
    for name, fields in (("source", ("source", "url")), ("licence", ("licence", "license"))):
        values = (notes[field] for field in fields if notes.get(field))
        text = str(next((value for value in values if isinstance(value, str | int | float)), ""))
        text = text.encode(errors="replace").decode()
        found[name] = brief(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", bare_url(text) if "://" in text else text))
    return found


def brief(text: str) -> str:
    """Return a text as a row of a manifest holds it: a licence in full would make the whole manifest unreadable."""
    data = text.encode()
    return text if len(data) <= ROW_LIMIT else data[: ROW_LIMIT - 3].decode(errors="ignore") + "..."


def tidy(text: str, where: str) -> str:
    """Return a caption as one line without control characters; CaptionError for half a surrogate pair."""
    if text.isprintable():
        return " ".join(text.split())
    if re.search(r"[\ud800-\udfff]", text):
        raise CaptionError(f"{where}: found {ascii(text)[:100]}, expected Unicode text")
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\ufeff]", " ", text).split())
