"""Files at a URL (http, https, s3, and by fsspec gs, az, abfs, hf), read by ranges: a request that fails is repeated.

http and s3 are asked here and not by fsspec: one request gives a range together with the ETag and the size of the file
that it is of, so that a file replaced between two reads is noticed; and of a web host the address is looked at first.
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
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from videodiff.data.storage.address import bare_url, join_url
from videodiff.data.storage.web import PUBLIC, LateError, LostError, PrivateHostError, asked, innermost

ATTEMPTS = 6
WAIT = 0.5  # seconds before the second attempt, in the mean; twice as many before each further one
CONNECT, READ = 10.0, 60.0  # seconds without a sign of life
PIECE = 2**24
BUFFER = 2**18
PACE = 2**14  # bytes a second that a host has to send at least, once it has had time for a sign of life
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
# What fsspec calls the version of a file, whichever store it lies in.
TAGS = ("etag", "ETag", "generation", "md5Hash", "content_md5", "blob_id", "last_modified", "created", "mtime")


class RemoteError(OSError):
    """A file at a URL that cannot be read."""


class Broken(Exception):
    """An attempt that failed, and of which the next may succeed."""


class Piece(NamedTuple):
    """A range of a file, the size of the whole file, and its ETag: another one means another content."""

    data: bytes
    size: int
    tag: str


@dataclass(frozen=True)
class Url:
    """A file or folder at a URL; like a `Path` it has `/`, `parent` and `open`.

    It is asked for as `text` has it; as a string it has no secrets. What `/` joins to it is a name, which is quoted.
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
        """Whether it has a query, and names that are quoted."""
        return urlsplit(self.text).scheme in ("http", "https")

    @property
    def name(self) -> str:
        """The last part of the path."""
        path = self.text.partition("#")[0].partition("?")[0] if self.at_web else self.text
        name = path.rsplit("/", 1)[1]
        return unquote(name, errors="surrogateescape") if self.at_web else name

    @property
    def parent(self) -> Url:
        """The folder that a file lies in."""
        path, mark, query = self.text.partition("?") if self.at_web else (self.text, "", "")
        return Url(path.rsplit("/", 1)[0] + mark + query)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open a file for reading and seeking; only what is read is fetched."""
        return io.BufferedReader(Ranges(self), BUFFER)

    def pieces(self) -> Iterator[bytes]:
        """Yield a file from begin to end; RemoteError where it was replaced on the way."""
        piece = fetch(self, 0, PIECE)
        yield piece.data
        for start in range(PIECE, piece.size, PIECE):
            yield fetch(self, start, start + PIECE, piece.tag).data


class Ranges(io.RawIOBase):
    """A file at a URL of which every read is a request."""

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


def place_of(name: Any) -> Any:
    """Return a Url for a string with a scheme, a Path for another one; what is a place already stays."""
    if not isinstance(name, str):
        return name
    return Url(name) if "://" in name else Path(name)


def fetch(url: Url, start: int, stop: int, tag: str | None = None) -> Piece:
    """Return the bytes from start to stop, fewer at the end of the file; with `tag`, of the file that has this ETag."""
    # By chance up to twice the pause: a thousand ranks that failed together must not come back together.
    pause = wait_random_exponential(multiplier=2 * WAIT)
    again = Retrying(stop=stop_after_attempt(ATTEMPTS), wait=pause, retry=retry_if_exception_type(Broken), reraise=True)
    try:
        piece = again(attempt_fetch, url, start, stop)
    except Broken as error:
        raise RemoteError(f"{url}: found no answer in {ATTEMPTS} attempts: {error}") from error
    if tag not in (None, piece.tag):
        raise RemoteError(f"{url}: found ETag {piece.tag}, expected {tag}: it was replaced while it was read")
    return piece


def attempt_fetch(url: Url, start: int, stop: int) -> Piece:
    """Ask for a range once; Broken where it may be there later, RemoteError where it will not."""
    scheme = urlsplit(url.text).scheme
    if scheme not in GET:
        return from_store(url, start, stop)
    status, headers, data = GET[scheme](url.text, f"bytes={start}-{stop - 1}", stop - start)
    if status in BUSY:
        raise Broken(f"status {status}")
    if status in (401, 403):
        raise RemoteError(
            f"{url}: found status {status}, expected a file that the credentials may read: set {CREDENTIALS[scheme]}"
        )
    if status == 404:
        raise RemoteError(f"{url}: found no such file, expected one")
    if status != 206:
        raise RemoteError(f"{url}: found status {status}, expected 206: a server that answers with ranges")
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("content-range", ""))
    if not place or int(place[1]) != start:
        raise RemoteError(f"{url}: found the range {headers.get('content-range')}, expected one from byte {start}")
    size = int(place[2])
    if len(data) > stop - start:
        raise RemoteError(f"{url}: found over {stop - start} bytes in an answer, expected as many as were asked for")
    if len(data) != min(stop, size) - start:
        raise Broken(f"ended after {len(data)} of {min(stop, size) - start} bytes")
    return Piece(data, size, headers.get("etag", ""))


Reply = tuple[int, Mapping[str, str], bytes]


def get_http(url: str, span: str, count: int) -> Reply:
    """Return status, headers and, of a range of so many bytes, these; one more shows that there are too many.

    The user named the URL, so its host may be any; to where it sends on is checked.
    """
    try:
        with asked(url, {"Range": span}, PUBLIC, READ + count / PACE, (CONNECT, READ), own=True) as answer:
            data = b"".join(answer.blocks(count + 1)) if answer.status == 206 else b""
            return answer.status, answer.headers, data
    except (LateError, LostError) as error:
        raise Broken(str(error)) from error
    except PrivateHostError as error:
        raise RemoteError(f"{bare_url(url)}: found a redirect from a public host to one inside: {error}") from error


def get_s3(url: str, span: str, count: int) -> Reply:
    """Return status, headers and, of a range of so many bytes, these."""
    from botocore import exceptions

    # What stands behind # or ? is part of a key.
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
    """Return a range of a file in a store that fsspec knows, and which version of the file it is of."""
    scheme = urlsplit(url.text).scheme
    try:
        store = fsspec.filesystem(scheme)
        info = store.info(url.text)
        size = int(info["size"])
        data = store.cat_file(url.text, start, min(stop, size)) if start < size else b""
    except ImportError as error:
        raise RemoteError(f"{url}: {' '.join(str(error).split())}: it is what fsspec reads {scheme}:// with") from error
    except FileNotFoundError as error:
        raise RemoteError(f"{url}: found no such file, expected one") from error
    except PermissionError as error:
        raise RemoteError(f"{url}: found no right to read it: set {CREDENTIALS[scheme]}") from error
    except OSError as error:
        raise Broken(innermost(error)) from error
    if len(data) != min(stop, size) - start:
        raise Broken(f"ended after {len(data)} of {min(stop, size) - start} bytes")
    return Piece(data, size, next((str(info[name]) for name in TAGS if info.get(name)), ""))


@functools.lru_cache(maxsize=1)
def s3_client(process: int) -> Any:
    """Return a client with the credentials and the endpoint that the environment names, as for any AWS program."""
    from botocore.config import Config
    from botocore.session import get_session

    settings = Config(connect_timeout=CONNECT, read_timeout=READ, retries={"total_max_attempts": 1})
    return get_session().create_client("s3", config=settings)


GET: dict[str, Callable[[str, str, int], Reply]] = {"http": get_http, "https": get_http, "s3": get_s3}
