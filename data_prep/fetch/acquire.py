"""Acquire: the video of a request as a local file, or a typed failure.

Local files stay where they are. Files on HTTP(S) servers and, through fsspec, in object stores are fetched in ranges: a
broken transfer resumes where it broke. Pages (YouTube and others) are fetched by yt-dlp. Only public hosts are asked,
unless others are allowed: metadata comes from strangers.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import urlsplit

import fsspec

from data_prep.books.request import NAMESPACE, ClipRequest, InputError, Part
from data_prep.fetch.failures import LATER, NEVER, NOW, AcquireError, classify, status_error
from data_prep.fetch.hosts import FarHosts, Hosts
from data_prep.fetch.policy import DEFAULT, FetchPolicy, read_cookies
from data_prep.sources.folder import VIDEOS, check_inside
from videodiff.data.storage.address import join_url, without_secrets
from videodiff.data.storage.files import sync
from videodiff.data.storage.remote import version_of
from videodiff.data.storage.web import Answer, PrivateHostError, asked, checked_lookups

T = TypeVar("T")
BLOCK = 8 * 2**20
log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())


def redact(record: logging.LogRecord) -> bool:
    """Take the secrets of URLs out of what yt-dlp logs."""
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True


log.addFilter(redact)


@dataclass(frozen=True)
class Acquired:
    """A video on the disk: its file, its sha-256, and whether it was created here and may be deleted after use.

    stamp: of the local file that it is or is a part of, see `stamp_of`; None for what was fetched.
    """

    path: Path
    sha256: str
    temporary: bool
    stamp: tuple[int, int] | None = None


class Near(NamedTuple):
    """A file of this machine that a video is read from; followed: links on its path are the user's own."""

    path: Path
    followed: bool


class Range(NamedTuple):
    """Bytes of a file, with the size and version of the whole file."""

    data: bytes
    size: int
    version: str


class Acquirer:
    """Fetch videos into `folder`; all processes that use this folder share the rate limits of hosts.

    Two processes must not fetch the same source at the same time. root: the folder or URL below which the paths of
    requests lie; keeper: the address of the `Keeper` if several machines work; sound: fetch the sound of a video from a
    page too.
    """

    def __init__(
        self,
        folder: str | Path,
        root: str | Path = ".",
        policy: FetchPolicy = DEFAULT,
        keeper: str | None = None,
        sound: bool = False,
    ) -> None:
        self.folder, self.root = Path(folder), str(root) if "://" in str(root) else str(root).rstrip("/") or "/"
        self.policy, self.sound = policy, sound
        self.reach, self.cookies = policy.reach(self.root), read_cookies(policy.cookies)
        local = Hosts(self.folder / "hosts", policy.rate)
        self.hosts = FarHosts(keeper, policy.rate) if keeper else local

    def fetch(self, request: ClipRequest) -> Acquired:
        """Return the video of a request; an AcquireError where it does not come, an OSError where the disk is full."""
        location, stamp = request.address or request.source, None
        if (near := near_file(request, self.root, self.policy)) is not None:
            check_local(Path(self.root), *near)
            location, stamp = str(near.path), stamp_of(near.path)
            if request.part is None:
                return Acquired(near.path, digest(near.path), temporary=False, stamp=stamp)
        elif "://" not in location:
            location = join_url(self.root, location)
        name = str(uuid.uuid5(NAMESPACE, json.dumps(request.video)))
        path, folder = self.folder / name, self.folder / f".{name}.partial"
        if not path.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                keep(self._bring(location, request.part, folder), path)
            finally:
                shutil.rmtree(folder)
        return Acquired(path, digest(path), temporary=True, stamp=stamp)

    def _bring(self, location: str, part: Part | None, folder: Path) -> Path:
        until = time.monotonic() + self.policy.deadline
        if is_page(location) and part is None:
            return self._patiently(location, partial(self._from_page, location, folder, until))
        path = folder / "video"
        with path.open("wb") as file:
            if location.startswith(("http://", "https://")):
                self._from_web(location, part, file, until)
            elif "://" in location:
                self._from_store(location, part, file, until)
            else:
                self._check(part.size, until)
                copy_part(Path(location), part, file)
        return path

    def _patiently(self, url: str, attempt: Callable[[str | None], T]) -> T:
        """Return what `attempt(proxy)` returns; retry it while a retry may help."""
        policy = self.policy
        host, first = urlsplit(url).netloc.rpartition("@")[2], zlib.crc32(url.encode())
        for number in range(policy.attempts):
            self.hosts.wait(host)
            proxy = policy.proxies[(first + number) % len(policy.proxies)] if policy.proxies else None
            try:
                return attempt(proxy)
            except Exception as error:
                failure = classify(error)
                wait = policy.pause * 2**number * random.uniform(0.5, 1.5) if failure.wait is None else failure.wait
                if failure.again != NOW or number + 1 == policy.attempts or wait > policy.longest:
                    raise failure from error
            if failure.busy:
                self.hosts.pause(host, wait)
            else:
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _from_web(self, url: str, part: Part | None, file: BinaryIO, until: float) -> None:
        """Copy a file, or a part of one, block by block; each block has its own retries."""
        start, end = (part.offset, part.offset + part.size) if part else (0, None)
        self._check(part.size if part else 0, until)
        offset, first = start, None
        while end is None or offset < end:
            stop = offset + BLOCK if end is None else min(offset + BLOCK, end)
            # A server without ranges sends the whole file, once.
            found = self._patiently(url, partial(self._range, url, offset, stop, file, until, part is None))
            if found is None:
                return
            first = first or found
            check_same(url, first.version, found.version)
            end = min(found.size, end) if end is not None else found.size
            # An answer without ranges that broke off before has left its bytes.
            file.seek(offset - start)
            file.write(found.data)
            offset += len(found.data)
            self._check(part.size if part else found.size, until)
        file.truncate(offset - start)

    def _range(
        self, url: str, start: int, stop: int, file: BinaryIO, until: float, whole: bool, proxy: str | None
    ) -> Range | None:
        """Return a range; None if the whole file was written."""
        headers, timeout = {"Range": f"bytes={start}-{stop - 1}"}, (self.policy.timeout, self.policy.timeout)
        with asked(url, headers, self.reach, self.policy.deadline, timeout, proxy) as answer:
            check_answer(answer, url)
            if answer.status == 416:
                return Range(b"", 0, version_of(answer.headers, 0))
            if answer.status != 206:
                if not whole:
                    raise AcquireError("no-ranges", LATER, f"found status {answer.status} at {url}, expected a range")
                self._stream(answer, url, file, until)
                return None
            first, _, size = map(int, range_of(answer))
            count = min(stop, size) - start
            block = b"".join(answer.blocks(count + 1))
            if first != start or len(block) > count:
                raise AcquireError("wrong-range", LATER, f"found other bytes at {url} than those asked for")
            if len(block) < count:
                raise AcquireError("truncated", NOW, f"found {len(block)} bytes at {start} of {url}, expected {count}")
            return Range(block, size, version_of(answer.headers, size))

    def _stream(self, answer: Answer, url: str, file: BinaryIO, until: float) -> None:
        """Copy a file from its start, as its server knows no ranges."""
        file.seek(0)
        file.truncate()
        for block in answer.blocks(self.policy.max_bytes + 1):
            file.write(block)
            self._check(file.tell(), until)
        length = answer.headers.get("content-length", "")
        if length.isdigit() and file.tell() != int(length):
            raise AcquireError("truncated", NOW, f"found {file.tell()} bytes of {url}, expected {length}")

    def _from_store(self, url: str, part: Part | None, file: BinaryIO, until: float) -> None:
        """Copy an object of a store, or a part of one, block by block; each block has its own retries."""
        scheme = urlsplit(url).scheme

        def block(offset: int, count: int, proxy: str | None) -> bytes:
            files = fsspec.filesystem(scheme, **dict(self.policy.storage.get(scheme, {})))
            with files.open(url, block_size=BLOCK, cache_type="none", size=start + size) as remote:
                remote.seek(offset)
                found = remote.read(count)
            if len(found) != count:
                raise AcquireError("truncated", NOW, f"found {len(found)} bytes at {offset} of {url}, expected {count}")
            return found

        def told(proxy: str | None) -> dict[str, Any]:
            return fsspec.filesystem(scheme, **dict(self.policy.storage.get(scheme, {}))).info(url)

        info = self._patiently(url, told)
        start, size = (part.offset, part.size) if part else (0, info["size"])
        self._check(size, until)
        for offset in range(start, start + size, BLOCK):
            file.write(self._patiently(url, partial(block, offset, min(BLOCK, start + size - offset))))
            self._check(size, until)
        now = self._patiently(url, told)
        check_same(url, version_of(info, info["size"]), version_of(now, now["size"]))

    def _from_page(self, url: str, folder: Path, until: float, proxy: str | None) -> Path:
        import yt_dlp  # imported here: it takes a second, and only pages need it

        # Sound is either in a stream of its own, which ffmpeg joins to the picture, or in the same file.
        wanted = "bv*+ba/b/bv*" if self.sound else "bv*"

        def choose(found: dict[str, Any]) -> Any:
            """Choose among the formats that are small enough and whose connections are checked here."""
            fitting = [one for one in found["formats"] if fits(one, self.policy.height)]
            return page.build_format_selector(wanted)({**found, "formats": fitting})

        options = {
            "format": choose,
            "format_sort": ["vcodec:h264", "res", "fps"],
            "outtmpl": {"default": "video.%(ext)s"},
            "paths": {"home": str(folder)},
            "cookiefile": io.StringIO(self.cookies) if self.cookies else None,
            "proxy": proxy,
            "socket_timeout": self.policy.timeout,
            "sleep_interval_requests": self.hosts.interval,
            "progress_hooks": [lambda state: self._check(state.get("downloaded_bytes") or 0, until)],
            "retries": 0,
            "extractor_retries": 0,
            "noplaylist": True,
            "match_filter": unwanted,
            # The connections of external programs would not be checked.
            "external_downloader": {"default": "native"},
            "fixup": "never",
            "cachedir": False,
            "quiet": True,
            "no_warnings": True,
            "noprogress": True,
            "color": "never",
            "logger": log,
        }
        given = {name: value for name, value in options.items() if value is not None}
        with checked_lookups(self.reach) as refused, yt_dlp.YoutubeDL(given) as page:
            try:
                found = page.extract_info(url)
            except Exception as error:
                if refused:
                    raise PrivateHostError(refused[0]) from error
                raise
        downloads = found.get("requested_downloads") or []
        if len(downloads) != 1:
            raise AcquireError(
                "not-one-video", NEVER, f"found {found.get('_type', 'nothing')} at {url}, expected a video"
            )
        return Path(downloads[0]["filepath"])

    def _check(self, size: int, until: float) -> None:
        if size > self.policy.max_bytes:
            raise AcquireError("too-large", NEVER, f"found {size} bytes, expected at most {self.policy.max_bytes}")
        if time.monotonic() > until:
            raise AcquireError("too-slow", LATER, f"found no end within {self.policy.deadline} s")


def near_file(request: ClipRequest, root: str, policy: FetchPolicy) -> Near | None:
    """Return the local file of a request: one downloaded before, or one below `root`; None if the video is fetched."""
    if policy.local is not None and not request.part and request.parent == Path(request.parent).name != "":
        path = Path(policy.local.replace("{id}", request.parent))
        if path.is_file():
            return Near(path, followed=True)
    location = request.address or request.source
    return None if "://" in location or "://" in root else Near(Path(root) / location, request.followed)


def stamp_of(path: Path) -> tuple[int, int]:
    """Return size and time of a file, which tell at no cost that it may have been replaced."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def check_same(url: str, before: str, now: str) -> None:
    """Raise an AcquireError if a file was replaced while it was fetched: its bytes would be of two files."""
    if now != before:
        raise AcquireError("changed", LATER, f"found version {now} at {url}, expected {before} as before")


def check_answer(answer: Answer, url: str) -> None:
    """Raise an AcquireError unless a response can hold a video."""
    if answer.status == 416 and range_of(answer)[2] == "0":
        return
    if answer.status >= 400:
        raise status_error(answer.status, answer.headers, f"found status {answer.status} at {url}")
    if answer.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/html":
        raise AcquireError("not-a-video", NEVER, f"found a page of HTML at {url}, expected a video")


def range_of(answer: Answer) -> tuple[str, str, str]:
    """Return first byte, last byte and file size of a Content-Range; an AcquireError if a response has none."""
    text = answer.headers.get("content-range", "")
    if found := re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", text):
        return found[1], found[2], found[3]
    if found := re.fullmatch(r"bytes \*/(\d{1,18})", text):
        return "0", "0", found[1]
    raise AcquireError("wrong-range", LATER, f"found the range {text[:100]!r}, expected one of bytes")


def fits(found: dict[str, Any], height: int) -> bool:
    """Tell whether a format comes by HTTP and its shorter side, if it is known, is small enough."""
    sides = [side for side in (found.get("width"), found.get("height")) if side]
    # If only one side is known, it is the height.
    small = not sides or min(sides) <= height
    return small and str(found.get("protocol", "http")).startswith(("http", "m3u8", "dash", "ism", "f4m"))


def unwanted(entry: dict[str, Any], **_: Any) -> str | None:
    """Return why yt-dlp must not fetch a video that it found; None if it may."""
    # A page with several videos does not say which one is meant; a live stream has no end.
    return "one of several" if entry.get("playlist_index") else "live" if entry.get("is_live") else None


def is_page(url: str) -> bool:
    """Tell whether a URL names a page with a video, not a video file."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and PurePosixPath(parts.path).suffix.lower() not in VIDEOS


def check_local(root: Path, path: Path, followed: bool = False) -> None:
    """Raise an AcquireError unless a path is a file that can be read, below a folder where links are not `followed`."""
    try:
        if not followed:
            check_inside(root, path)
    except InputError as error:
        raise AcquireError(error.reason, NEVER, error.detail) from error
    if not path.is_file():
        raise AcquireError("missing", NEVER, f"found no file {path}")
    if not os.access(path, os.R_OK):
        raise AcquireError("forbidden", LATER, f"found {path}, which cannot be read")
    if not path.stat().st_size:
        raise AcquireError("empty", NEVER, f"found 0 bytes in {path}")


def copy_part(archive: Path, part: Part, file: BinaryIO) -> None:
    """Copy a part of a local file; an AcquireError where the file ends before it."""
    left = part.size
    with archive.open("rb") as whole:
        whole.seek(part.offset)
        while block := whole.read(min(left, BLOCK)):
            file.write(block)
            left -= len(block)
    if left:
        raise AcquireError("truncated", NEVER, f"found {part.size - left} bytes of {part.name}, expected {part.size}")


def keep(came: Path, path: Path) -> None:
    """Rename a complete download to its final name; an AcquireError if it is empty."""
    if not came.stat().st_size:
        raise AcquireError("empty", NEVER, "found 0 bytes")
    with came.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(came, path)
    sync(path.parent)


def digest(path: Path) -> str:
    """Return the sha-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
