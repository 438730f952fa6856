"""Acquire: the video of a request as a local file, or a typed failure.

Local files stay where they are. Files at HTTP(S) and in object stores come by fsspec, in ranges, so that a broken
transfer goes on where it broke; pages (YouTube and the rest) by yt-dlp.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import aiohttp
import fsspec

from data_prep.failures import LATER, NEVER, NOW, AcquireError, classify
from data_prep.hosts import FarHosts, Hosts
from data_prep.request import NAMESPACE, ClipRequest, InputError, Part
from data_prep.sources.folder import VIDEOS, check_inside
from videodiff.data.files import sync

T = TypeVar("T")
BLOCK = 8 * 2**20
log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Acquired:
    """A video on the disk: its file, the sha-256 of it, and whether it was made here and may be deleted after use."""

    path: Path
    sha256: str
    temporary: bool


class Acquirer:
    """Fetch videos into `folder`, where the acquirers of other processes share the pace at which hosts are asked.

    Two of them must not fetch the same source at once.

    `root` is the folder or URL below which the paths of requests lie. A host gets `rate` requests a second; a request
    that fails for now is repeated up to `attempts` times in all, `pause` seconds later, then twice that and so on, or
    when the host says, but never over `longest` seconds later. `timeout` is that of a host that says nothing and
    `deadline` that of one video, in seconds. `height` is the most lines of a video from a page; `cookies` (a file in
    Netscape format) is for pages, `proxies` for pages and HTTP, one after the other. `storage` maps schemes such as
    `s3` to options of fsspec. `keeper` is the address of who keeps the pace for several machines. `local` is a path
    with `{id}` in place of a video's id: what lies there is not fetched. With `sound` a page's is fetched too.
    """

    def __init__(
        self,
        folder: str | Path,
        root: str | Path = ".",
        rate: float = 4.0,
        attempts: int = 5,
        pause: float = 1.0,
        longest: float = 300.0,
        timeout: float = 30.0,
        deadline: float = 1800.0,
        max_bytes: int = 16 * 2**30,
        height: int = 720,
        cookies: str | Path | None = None,
        proxies: Sequence[str] = (),
        storage: Mapping[str, Mapping[str, Any]] | None = None,
        keeper: str | None = None,
        local: str | None = None,
        sound: bool = False,
    ) -> None:
        if min(attempts, height, max_bytes) < 1 or min(pause, longest, timeout, deadline) <= 0:
            raise ValueError(
                f"acquire: found attempts={attempts} height={height} max_bytes={max_bytes} pause={pause} "
                f"longest={longest} timeout={timeout} deadline={deadline}, expected at least 1 and times above 0"
            )
        if local is not None and "{id}" not in local:
            raise ValueError(f"acquire.local: found {local!r}, expected a path with {{id}} in it")
        self.local, self.sound = local, sound
        self.folder, self.root = Path(folder), str(root).rstrip("/") or "/"
        self.attempts, self.pause, self.longest = attempts, pause, longest
        self.timeout, self.deadline, self.max_bytes, self.height = timeout, deadline, max_bytes, height
        self.cookies, self.proxies, self.storage = read_cookies(cookies), tuple(proxies), storage or {}
        local = Hosts(self.folder / "hosts", rate)
        self.hosts = FarHosts(keeper, rate) if keeper else local

    def fetch(self, request: ClipRequest) -> Acquired:
        """Return the video of a request; an AcquireError where it does not come, an OSError where the disk is full."""
        if (path := self._at_hand(request)) is not None:
            return Acquired(path, digest(path), temporary=False)
        location = request.source if "://" in request.source else f"{self.root}/{request.source}"
        if "://" not in location:
            check_local(Path(self.root), Path(location), request.followed)
            if request.part is None:
                return Acquired(Path(location), digest(Path(location)), temporary=False)
        name = str(uuid.uuid5(NAMESPACE, json.dumps([request.source, request.part and request.part.name])))
        path, folder = self.folder / name, self.folder / f".{name}.partial"
        if not path.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                keep(self._bring(location, request.part, folder), path)
            finally:
                shutil.rmtree(folder)
        return Acquired(path, digest(path), temporary=True)

    def _at_hand(self, request: ClipRequest) -> Path | None:
        """Return the file of a video that was downloaded before, None where there is none."""
        if self.local is None or request.part or not request.parent:
            return None
        path = Path(self.local.replace("{id}", request.parent))
        return path if Path(request.parent).name == request.parent and path.is_file() else None

    def _bring(self, location: str, part: Part | None, folder: Path) -> Path:
        until = time.monotonic() + self.deadline
        if is_page(location) and part is None:
            return self._patiently(location, partial(self._from_page, location, folder, until))
        path = folder / "video"
        with path.open("wb") as file:
            if "://" in location:
                self._from_file(location, part, file, until)
            else:
                self._check(part.size, until)
                copy_part(Path(location), part, file)
        return path

    def _patiently(self, url: str, attempt: Callable[[str | None], T]) -> T:
        """Return what `attempt(proxy)` returns, repeating it while that may help."""
        host, first = urlsplit(url).netloc, zlib.crc32(url.encode())
        for number in range(self.attempts):
            self.hosts.wait(host)
            proxy = self.proxies[(first + number) % len(self.proxies)] if self.proxies else None
            try:
                return attempt(proxy)
            except Exception as error:
                failure = classify(error)
                wait = self.pause * 2**number * random.uniform(0.5, 1.5) if failure.wait is None else failure.wait
                if failure.again != NOW or number + 1 == self.attempts or wait > self.longest:
                    raise failure from error
            if failure.busy:
                self.hosts.pause(host, wait)
            else:
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _from_file(self, url: str, part: Part | None, file: BinaryIO, until: float) -> None:
        """Copy a file, or a part of one, block by block, each with its own patience."""
        info = self._patiently(url, lambda proxy: self._filesystem(url, proxy).info(url))
        stream = partial(self._stream, url, file, until)
        if info.get("mimetype") == "text/html":
            raise AcquireError("not-a-video", NEVER, f"found a page of HTML at {url}, expected a video")
        start, size = (part.offset, part.size) if part else (0, info["size"])
        try:
            if size is None:
                self._patiently(url, stream)
            else:
                self._check(size, until)
                for offset in range(start, start + size, BLOCK):
                    count = min(BLOCK, start + size - offset)
                    file.write(self._patiently(url, partial(self._block, url, start + size, offset, count)))
                    self._check(size, until)
        except AcquireError as failure:
            if failure.reason != "no-ranges" or part:
                raise
            self._patiently(url, stream)

    def _block(self, url: str, size: int, offset: int, count: int, proxy: str | None) -> bytes:
        with self._filesystem(url, proxy).open(url, block_size=BLOCK, cache_type="none", size=size) as remote:
            remote.seek(offset)
            block = remote.read(count)
        if len(block) != count:
            raise AcquireError("truncated", NOW, f"found {len(block)} bytes at {offset} of {url}, expected {count}")
        return block

    def _stream(self, url: str, file: BinaryIO, until: float, proxy: str | None) -> None:
        """Copy a file from its start, as its size is not known or its server knows no ranges."""
        file.seek(0)
        file.truncate()
        with self._filesystem(url, proxy).open(url, block_size=0, size=1) as remote:
            while block := remote.read(BLOCK):
                file.write(block)
                self._check(file.tell(), until)

    def _filesystem(self, url: str, proxy: str | None) -> fsspec.AbstractFileSystem:
        scheme = urlsplit(url).scheme
        options: dict[str, Any] = {}
        if scheme in ("http", "https"):
            timeout = aiohttp.ClientTimeout(total=self.deadline, sock_connect=self.timeout, sock_read=self.timeout)
            options = {"client_kwargs": {"timeout": timeout, "trust_env": True}} | ({"proxy": proxy} if proxy else {})
        return fsspec.filesystem(scheme, **options | dict(self.storage.get(scheme, {})))

    def _from_page(self, url: str, folder: Path, until: float, proxy: str | None) -> Path:
        import yt_dlp  # its import takes a second, which a process that reads files shall not pay

        picture = f"[height<=?{self.height}]"
        options = {
            # Sound comes apart from the picture, and ffmpeg joins them, or with it.
            "format": f"bv*{picture}+ba/b{picture}/bv*{picture}" if self.sound else f"bv*{picture}",
            "format_sort": ["vcodec:h264", "res", "fps"],
            "outtmpl": {"default": "video.%(ext)s"},
            "paths": {"home": str(folder)},
            "cookiefile": io.StringIO(self.cookies) if self.cookies else None,
            "proxy": proxy,
            "socket_timeout": self.timeout,
            "sleep_interval_requests": self.hosts.interval,
            "progress_hooks": [lambda state: self._check(state.get("downloaded_bytes") or 0, until)],
            "retries": 0,
            "extractor_retries": 0,
            "noplaylist": True,
            # Of several videos on a page none is known to be the one that is meant.
            "match_filter": lambda entry, **_: "one of several" if entry.get("playlist_index") else None,
            "fixup": "never",
            "cachedir": False,
            "quiet": True,
            "no_warnings": True,
            "noprogress": True,
            "color": "never",
            "logger": log,
        }
        with yt_dlp.YoutubeDL({name: value for name, value in options.items() if value is not None}) as page:
            found = page.extract_info(url)
        downloads = found.get("requested_downloads") or []
        if len(downloads) != 1:
            raise AcquireError(
                "not-one-video", NEVER, f"found {found.get('_type', 'nothing')} at {url}, expected a video"
            )
        return Path(downloads[0]["filepath"])

    def _check(self, size: int, until: float) -> None:
        if size > self.max_bytes:
            raise AcquireError("too-large", NEVER, f"found {size} bytes, expected at most {self.max_bytes}")
        if time.monotonic() > until:
            raise AcquireError("too-slow", LATER, f"found no end within {self.deadline} s")


def is_page(url: str) -> bool:
    """Tell whether a URL is that of a page with a video and not of a video."""
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
    """Give a file that has come whole its name; an AcquireError where nothing came."""
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


def read_cookies(path: str | Path | None) -> str:
    """Return the text of a cookies file, read once: yt-dlp would write to it from every process."""
    if path is None:
        return ""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cookies: {path} cannot be read: {error}") from error
    if not re.match(r"#( Netscape)? HTTP Cookie File", text):
        raise ValueError(f"cookies: found {text[:40]!r} in {path}, expected the line '# Netscape HTTP Cookie File'")
    return text
