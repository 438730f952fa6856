"""Read files at a URL (http, https, s3, and by fsspec gs, az, abfs, hf) by ranges, with retries.

http and s3 do not go through fsspec: here one request returns a range together with the version of the file, so that a
file replaced between two reads is noticed. The address of a web host is checked before the request.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import fsspec

from videodiff.data.storage.address import bare_url, join_url
from videodiff.data.storage.web import PUBLIC, LateError, LostError, PrivateHostError, asked, innermost

ATTEMPTS = 6
WAIT = 0.5  # mean seconds before the second attempt; they double before each further one
CONNECT, READ = 10.0, 60.0  # timeouts in seconds to connect, and between two reads
PIECE = 2**24
BUFFER = 2**18
PACE = 2**14  # least bytes a second that a host must send, after the time for its first byte
BUSY = {408, 425, 429, 500, 502, 503, 504}
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role",
    "http": "a line for its host in ~/.netrc",
    "https": "a line for its host in ~/.netrc",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or a role",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with a key or a token",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME with a key or a token",
    "hf": "HF_TOKEN",
}
# Names under which servers, in headers, and the stores of fsspec give the version of a file, the exact ones first.
TAGS = ("etag", "ETag", "generation", "md5Hash", "content_md5", "blob_id")
TAGS += ("last-modified", "LastModified", "last_modified", "created", "mtime")


class RemoteError(OSError):
    """Raised when a file at a URL cannot be read."""


class Broken(Exception):
    """A failed attempt; the next one may succeed."""


class Piece(NamedTuple):
    """A range of a file, with the size and version of the whole file; another version means other content."""

    data: bytes
    size: int
    tag: str


@dataclass(frozen=True)
class Url:
    """A file or folder at a URL; like a `Path` it has `/`, `parent` and `open`.

    Requests use `text`; `str()` leaves secrets out. `/` joins a file name, which is quoted.
    """

    text: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.text)
        if parts.scheme not in CREDENTIALS or not parts.hostname or "@" in parts.netloc:
            expected = ", ".join(f"{scheme}://" for scheme in CREDENTIALS)
            shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
            raise ValueError(f"url: found {shown}, expected {expected} and a host, without a user")

    def __str__(self) -> str:
        return bare_url(self.text)

    def __truediv__(self, name: str) -> Url:
        return Url(join_url(self.text, name))

    @property
    def at_web(self) -> bool:
        """Whether it is http or https: it may have a query, and names are quoted."""
        return urlsplit(self.text).scheme in ("http", "https")

    @property
    def name(self) -> str:
        """The last part of the path."""
        path = self.text.partition("#")[0].partition("?")[0] if self.at_web else self.text
        name = path.rsplit("/", 1)[1]
        return unquote(name, errors="surrogateescape") if self.at_web else name

    @property
    def parent(self) -> Url:
        """The folder that contains the file."""
        path, mark, query = self.text.partition("?") if self.at_web else (self.text, "", "")
        return Url(path.rsplit("/", 1)[0] + mark + query)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open a file for reading and seeking; only the ranges that are read are fetched."""
        return io.BufferedReader(Ranges(self), BUFFER)

    def pieces(self) -> Iterator[bytes]:
        """Yield a file in pieces from start to end; RemoteError if it is replaced meanwhile."""
        piece = fetch(self, 0, PIECE)
        yield piece.data
        for start in range(PIECE, piece.size, PIECE):
            yield fetch(self, start, start + PIECE, piece.tag).data


class Ranges(io.RawIOBase):
    """A file at a URL; every read is a request."""

    def __init__(self, url: Url) -> None:
        self.url, self.position = url, 0
        _, self.size, self.tag = fetch(url, 0, 1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        if self.position >= self.size or not len(buffer):
            return 0
        data = fetch(self.url, self.position, self.position + min(len(buffer), PIECE), self.tag).data
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def path_or_url(name: Any) -> Any:
    """Return a Url for a string with a scheme, a Path for any other string; other objects unchanged."""
    if not isinstance(name, str):
        return name
    return Url(name) if "://" in name else Path(name)


def fetch(url: Url, start: int, stop: int, tag: str | None = None) -> Piece:
    """Return the bytes from start to stop, fewer at the end of the file; RemoteError if its version is not `tag`."""
    try:
        piece = retrying(ATTEMPTS, WAIT)(attempt_fetch, url, start, stop)
    except Broken as error:
        raise RemoteError(f"{url}: found no answer in {ATTEMPTS} attempts: {error}") from error
    if tag not in (None, piece.tag):
        raise RemoteError(f"{url}: found version {piece.tag}, expected {tag}: the file was replaced while it was read")
    return piece


def retrying(attempts: int, wait: float) -> Callable[..., Any]:
    """Return what calls a function with its arguments, again where it raises Broken; `wait`: mean seconds at first."""
    # Who reads local files needs no tenacity.
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt
    from tenacity.wait import wait_random_exponential

    # A random pause: a thousand ranks that failed together must not retry together.
    pause = wait_random_exponential(multiplier=2 * wait)
    return Retrying(stop=stop_after_attempt(attempts), wait=pause, retry=retry_if_exception_type(Broken), reraise=True)


def attempt_fetch(url: Url, start: int, stop: int) -> Piece:
    """Request a range once; Broken if a retry may help, RemoteError if not."""
    scheme = urlsplit(url.text).scheme
    if scheme not in GET:
        return from_store(url, start, stop)
    status, headers, data = GET[scheme](url.text, f"bytes={start}-{stop - 1}", stop - start)
    if status in BUSY:
        raise Broken(f"status {status}")
    if status in (401, 403):
        raise RemoteError(f"{url}: found status {status}, expected read access to the file: set {CREDENTIALS[scheme]}")
    if status == 404:
        raise RemoteError(f"{url}: found no such file, expected one")
    if status != 206:
        raise RemoteError(f"{url}: found status {status}, expected 206: use a server that supports ranges")
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("content-range", ""))
    if not place or int(place[1]) != start:
        raise RemoteError(f"{url}: found the range {headers.get('content-range')}, expected one from byte {start}")
    size = int(place[2])
    if len(data) > stop - start:
        raise RemoteError(f"{url}: found more bytes in an answer, expected the {stop - start} of the requested range")
    if len(data) != min(stop, size) - start:
        raise Broken(f"ended after {len(data)} of {min(stop, size) - start} bytes")
    return Piece(data, size, version_of(headers, size))


def version_of(told: Mapping[str, Any], size: int) -> str:
    """Return which version of a file the headers of an answer, or a store, tell of; its size if they do not say."""
    return next((str(told[name])[:100] for name in TAGS if told.get(name)), f"{size} bytes")


Reply = tuple[int, Mapping[str, str], bytes]


def get_http(url: str, span: str, count: int) -> Reply:
    """Return status, headers and body; at most `count` + 1 bytes are read, so that a longer body is noticed.

    The user named the URL, so its host may be any; redirects are checked.
    """
    try:
        with asked(url, {"Range": span}, PUBLIC, READ + count / PACE, (CONNECT, READ), own=True) as answer:
            data = b"".join(answer.blocks(count + 1)) if answer.status == 206 else b""
            return answer.status, answer.headers, data
    except (LateError, LostError) as error:
        raise Broken(str(error)) from error
    except PrivateHostError as error:
        raise RemoteError(f"{bare_url(url)}: found a redirect from a public host to a private one: {error}") from error


def get_s3(url: str, span: str, count: int) -> Reply:
    """Return status, headers and body of a range, see `get_http`."""
    from botocore import exceptions

    # In s3 a key may contain # and ?.
    bucket, _, key = url.removeprefix("s3://").partition("/")
    try:
        reply = s3_client(os.getpid()).get_object(Bucket=bucket, Key=key, Range=span)
        data = reply["Body"].read(count + 1)
    except exceptions.ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], {}, b""
    except (exceptions.HTTPClientError, exceptions.IncompleteReadError) as error:
        raise Broken(innermost(error)) from error
    except exceptions.BotoCoreError as error:
        raise RemoteError(f"{url}: {error}: set {CREDENTIALS['s3']}") from error
    return reply["ResponseMetadata"]["HTTPStatusCode"], reply["ResponseMetadata"]["HTTPHeaders"], data


def from_store(url: Url, start: int, stop: int) -> Piece:
    """Return a range of a file in a store of fsspec, with the version of the file."""
    scheme = urlsplit(url.text).scheme
    try:
        store = fsspec.filesystem(scheme)
        info = store.info(url.text)
        size = int(info["size"])
        data = store.cat_file(url.text, start, min(stop, size)) if start < size else b""
    except ImportError as error:
        raise RemoteError(f"{url}: {' '.join(str(error).split())}: fsspec needs it to read {scheme}://") from error
    except FileNotFoundError as error:
        raise RemoteError(f"{url}: found no such file, expected one") from error
    except PermissionError as error:
        raise RemoteError(f"{url}: found no permission to read it: set {CREDENTIALS[scheme]}") from error
    except OSError as error:
        raise Broken(innermost(error)) from error
    if len(data) != min(stop, size) - start:
        raise Broken(f"ended after {len(data)} of {min(stop, size) - start} bytes")
    return Piece(data, size, version_of(info, size))


@functools.lru_cache(maxsize=1)
def s3_client(process: int) -> Any:
    """Return a client with the credentials and endpoint from the environment, as any AWS program uses them."""
    from botocore.config import Config
    from botocore.session import get_session

    settings = Config(connect_timeout=CONNECT, read_timeout=READ, retries={"total_max_attempts": 1})
    return get_session().create_client("s3", config=settings)


GET: dict[str, Callable[[str, str, int], Reply]] = {"http": get_http, "https": get_http, "s3": get_s3}
