"""What data preparation works on: one wanted clip, the same for every source, or a row that cannot become one."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from videodiff.data.samples.sidecars import CaptionError, entries
from videodiff.data.storage.address import bare_url, mark_of, without_secrets

SCHEMES = ("http", "https", "s3", "gs", "az", "abfs", "hf")
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "videodiff/clip")


class InputError(ValueError):
    """Input that cannot be used: the class of the reason, and what was found and expected."""

    def __init__(self, reason: str, detail: str) -> None:
        detail = without_secrets(detail)
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
        return self.name + f":{self.line}" * bool(self.line) + f"#{self.item}" * bool(self.item)

    @property
    def name(self) -> str:
        """The file as it may be written down: its name may hold bytes that are no UTF-8."""
        return self.file.encode("utf-8", "backslashreplace").decode()


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

    Once it is admitted `source` has no secrets; `address` is then the URL as given, where it had any, and `mark` a
    digest of those that may tell files apart. `origin` is who writes the captions of this kind of metadata, empty where
    it speaks of none; `omitted` are the notes that were left out.
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
    origin: str = field(default="", compare=False)
    omitted: tuple[str, ...] = field(default=(), compare=False)
    address: str = field(default="", repr=False)
    mark: str = ""
    followed: bool = False

    @cached_property
    def id(self) -> str:
        """UUID-5 of source and span: what captions, scores and takedowns join by."""
        member = [self.part.name] if self.part else []
        marks = [self.mark] if self.mark else []
        return str(uuid.uuid5(NAMESPACE, json.dumps([self.source, *member, *marks, *map(str, self.span or ())])))

    @property
    def video(self) -> list[str | None]:
        """What is fetched as one: a source, or a member of an archive."""
        return [self.source, self.part and self.part.name] + ([self.mark] if self.mark else [])


def admitted(request: ClipRequest) -> ClipRequest:
    """Return a request whose source may be written down, with the address that it is fetched from."""
    source = bare_url(request.source) if "://" in request.source else request.source
    if source == request.source or request.address:
        return request
    return replace(request, source=source, address=request.source, mark=mark_of(request.source))


@dataclass(frozen=True)
class BadInput:
    """A row, or one clip of a row, that cannot become a request: its place, the class of the reason, what was found.

    `origin` is what has to be read again before this is known to be mended, empty for the file of the place.
    """

    place: Place
    reason: str
    detail: str
    origin: str = field(default="", compare=False)

    @cached_property
    def id(self) -> str:
        """UUID-5 of the place, as nothing else of it can be relied on."""
        return str(uuid.uuid5(NAMESPACE, f"place {self.place}"))


def checked_url(url: Any) -> str:
    """Return a URL of one of `SCHEMES` with a host, as it is given; anything else is an InputError.

    A key of an object store may hold blanks, a URL none.
    """
    try:
        parts = urlsplit(url) if isinstance(url, str) and not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", url) else None
    except ValueError:
        parts = None
    if parts is None or parts.scheme not in SCHEMES or not named_host(parts):
        raise InputError("bad-url", f"found {show(url)}, expected a URL that begins with one of {', '.join(SCHEMES)}")
    if " " in (url if parts.scheme in ("http", "https") else parts.netloc):
        raise InputError("bad-url", f"found a blank in {show(url)}, expected %20 for it")
    return url


def named_host(parts: SplitResult) -> str:
    """Return the host of a URL, empty where it or its port is none."""
    try:
        return (parts.hostname or "") if parts.port is None or parts.port else ""
    except ValueError:
        return ""


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


def checked_caption(value: Any, origin: str, score: float | None = None) -> tuple[Caption, ...]:
    """Return the captions of an entry, see `sidecars.entries`, each once; anything but text is an InputError."""
    if isinstance(value, float) and value != value:
        return ()  # what pandas has in place of text that is not there
    try:
        found = dict.fromkeys(entries(value, "caption"))
    except CaptionError as error:
        raise InputError("bad-text", str(error)) from error
    return tuple(Caption(text, by or origin, score) for text, by in found if text)


def checked_text(text: Any) -> str:
    """Return text, empty for what is not there; anything else, or half a surrogate pair, is an InputError."""
    if isinstance(text, float) and text != text:
        return ""  # what pandas has in place of text that is not there
    if text is not None and (not isinstance(text, str) or re.search(r"[\ud800-\udfff]", text)):
        raise InputError("bad-text", f"found {show(text)}, expected text")
    return text or ""


def needed(row: dict[str, Any], *names: str) -> Any:
    """Return the first of these fields that a row has; an InputError where it has none."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    fields = show(", ".join(map(str, row)))
    raise InputError("missing-field", f"found the fields {fields}, expected {' or '.join(names)}")


def show(value: Any) -> str:
    """Return a value as text short enough for one line of a report."""
    text = without_secrets(repr(value) if not isinstance(value, str) else ascii(value))
    return text if len(text) <= 100 else text[:97] + "..."
