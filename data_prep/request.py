"""What data preparation works on: one wanted clip, the same for every source, or a row that cannot become one."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

SCHEMES = ("http", "https", "s3", "gs", "az", "abfs", "hf")
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "videodiff/clip")


class InputError(ValueError):
    """Input that cannot be used: the class of the reason, and what was found and expected."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Place(NamedTuple):
    """Where an input stands: file, line (from 1; 0: the file itself), clip in the line (from 1; 0: the line itself)."""

    file: str
    line: int = 0
    item: int = 0

    def __str__(self) -> str:
        # The name of a file may hold bytes that are no UTF-8.
        file = self.file.encode("utf-8", "backslashreplace").decode()
        return file + f":{self.line}" * bool(self.line) + f"#{self.item}" * bool(self.item)


class Caption(NamedTuple):
    """A text, who wrote it, and how well it fits by that dataset's own score."""

    text: str
    origin: str
    score: float | None = None


class Part(NamedTuple):
    """A member of an archive: its name and where its bytes lie in the archive."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class ClipRequest:
    """A clip that is wanted, as metadata tells of it.

    `source` is a URL, or a path relative to the folder of the videos, so that `id` is the same on every machine. `span`
    is start and end in exact seconds; None is the whole video. `parent` is the video's id and `name` the clip's, as the
    dataset writes them. `notes` are further facts, as JSON could hold them. `followed`: the path was found in a folder
    that the user gave, so that links on it are the user's own; a path that a table names may not leave its folder.
    """

    place: Place
    source: str
    span: tuple[Fraction, Fraction] | None = None
    captions: tuple[Caption, ...] = ()
    licence: str = ""
    parent: str = ""
    name: str = ""
    part: Part | None = None
    notes: dict[str, Any] = field(default_factory=dict, hash=False)
    followed: bool = False

    @cached_property
    def id(self) -> str:
        """UUID-5 of source and span: what captions, scores and takedowns join by."""
        member = [self.part.name] if self.part else []
        return str(uuid.uuid5(NAMESPACE, json.dumps([self.source, *member, *map(str, self.span or ())])))


@dataclass(frozen=True)
class BadInput:
    """A row, or one clip of a row, that cannot become a request: its place, the class of the reason, what was found."""

    place: Place
    reason: str
    detail: str

    @cached_property
    def id(self) -> str:
        """UUID-5 of the place, as nothing else of it can be relied on."""
        return str(uuid.uuid5(NAMESPACE, f"place {self.place}"))


def checked_url(url: Any) -> str:
    """Return a URL of one of `SCHEMES` with a host and without blanks; anything else is an InputError."""
    try:
        parts = urlsplit(url) if isinstance(url, str) and not re.search(r"[\x00-\x20\x7f\ud800-\udfff]", url) else None
        if parts and parts.scheme in SCHEMES and parts.hostname:
            return url
    except ValueError:
        parts = None
    raise InputError("bad-url", f"found {show(url)}, expected a URL that begins with one of {', '.join(SCHEMES)}")


def checked_name(name: Any) -> str:
    """Return a file name that stays in its folder; anything else is an InputError."""
    if (
        isinstance(name, str)
        and re.fullmatch(r"[^/\\\x00-\x1f\x7f\ud800-\udfff]{1,250}", name)
        and name not in (".", "..")
    ):
        return name
    raise InputError("bad-name", f"found {show(name)}, expected a file name without path separators")


def checked_path(path: Any) -> str:
    """Return a relative path that stays below its folder, in its shortest form; anything else is an InputError."""
    if isinstance(path, str) and path and not re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]|://", path):
        short = PurePosixPath(path)
        if not short.is_absolute() and ".." not in short.parts and short.parts:
            return short.as_posix()
    raise InputError("bad-path", f"found {show(path)}, expected a relative path inside the folder of the videos")


def checked_source(source: Any) -> str:
    """Return a URL or a relative path; anything else is an InputError."""
    return checked_url(source) if isinstance(source, str) and "://" in source else checked_path(source)


def checked_caption(text: Any, origin: str, score: Any = None) -> tuple[Caption, ...]:
    """Return a caption with white space collapsed, none where there is no text; anything but text is an InputError."""
    words = " ".join(checked_text(text).split())
    return (Caption(words, origin, None if score is None else checked_number(score)),) if words else ()


def checked_text(text: Any) -> str:
    """Return text, empty for None; anything else, or half a surrogate pair, is an InputError."""
    if text is not None and (not isinstance(text, str) or re.search(r"[\ud800-\udfff]", text)):
        raise InputError("bad-text", f"found {show(text)}, expected text")
    return text or ""


def checked_number(value: Any) -> float:
    """Return a finite number; anything else is an InputError."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or number - number != 0:
        raise InputError("bad-number", f"found {show(value)}, expected a finite number")
    return number


def needed(row: dict[str, Any], *names: str) -> Any:
    """Return the first of these fields that a row has; an InputError where it has none."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    fields = show(", ".join(map(str, row)))
    raise InputError("missing-field", f"found the fields {fields}, expected {' or '.join(names)}")


def show(value: Any) -> str:
    """Return a value as text short enough for one line of a report."""
    text = repr(value) if not isinstance(value, str) else ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."
