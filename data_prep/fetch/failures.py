"""Failures to fetch a video, in classes that can be counted, whichever library raised the error."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from videodiff.data.storage.address import printable, without_secrets
from videodiff.data.storage.causes import chain

# When to try again: at once (after a pause), in a later run (`retry=failed`), or never.
NOW, LATER, NEVER = "now", "later", "never"
BUSY = (408, 425, 429, 500, 502, 503, 504)
# Exceptions of Python, aiohttp, urllib3, requests, botocore and yt-dlp by name. The first entry that matches an error
# or one of its causes decides.
ERRORS = {
    "PrivateHostError": ("private-address", LATER),
    "ShortError": ("truncated", NOW),
    "NoCredentialsError": ("credentials", LATER),
    "PartialCredentialsError": ("credentials", LATER),
    "ImportError": ("no-backend", LATER),
    "GeoRestrictedError": ("geo-blocked", NEVER),
    "UnsupportedError": ("unsupported", NEVER),
    "ClientPayloadError": ("truncated", NOW),
    "IncompleteRead": ("truncated", NOW),
    "ContentTooShortError": ("truncated", NOW),
    "NewConnectionError": ("connection", NOW),  # before the time-outs: urllib3 derives it from one
    "TimeoutError": ("timeout", NOW),
    "Timeout": ("timeout", NOW),
    "ReadTimeoutError": ("timeout", NOW),
    "ConnectTimeoutError": ("timeout", NOW),
    "ClientConnectionError": ("connection", NOW),
    "EndpointConnectionError": ("connection", NOW),
    "TransportError": ("connection", NOW),
    "ConnectionError": ("connection", NOW),
    # Last: fsspec raises it whenever it cannot learn the size of a file.
    "FileNotFoundError": ("missing", NEVER),
    "PermissionError": ("forbidden", LATER),
}
# Failures that only the text of a message tells. The first entry that matches decides: YouTube also calls a video
# unavailable where it refuses for now only.
MESSAGES = {
    "support range requests": ("no-ranges", LATER),
    "not a bot|captcha": ("bot-check", NOW),
    "try again later|temporarily unavailable": ("busy", LATER),
    "in your country": ("geo-blocked", NEVER),
    "confirm your age": ("age-restricted", NEVER),
    "private video|members-only|join this channel": ("private", NEVER),
    "terminated|removed|no longer available|unavailable|does not exist": ("gone", NEVER),
    "premieres in|live event will begin": ("not-yet", LATER),
    "requested format is not available": ("no-format", NEVER),
}


class AcquireError(Exception):
    """A video that did not come: the class of the failure, when to try again, and what was found."""

    def __init__(self, reason: str, again: str, detail: str, wait: float | None = None) -> None:
        detail = printable(without_secrets(detail))
        super().__init__(reason, again, detail, wait)
        self.reason, self.again, self.detail, self.wait = reason, again, detail, wait

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    @property
    def busy(self) -> bool:
        """Whether the host asks for fewer requests."""
        return self.reason in ("http-429", "http-503")

    @property
    def retryable(self) -> bool:
        """Whether a later run may succeed."""
        return self.again != NEVER


def classify(error: Exception) -> AcquireError:
    """Return an error of any of the libraries as a typed failure; an error for a full disk is raised again."""
    errors = list(chain(error, handled=False))
    for cause in errors:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise cause
        if isinstance(cause, AcquireError):
            return cause
    # The first cause says most, but for one that says nothing.
    said = next((cause for cause in reversed(errors) if str(cause).strip()), errors[0])
    detail = " ".join(f"{type(said).__name__}: {said}".split())[:500].removesuffix(":")
    for cause in errors:
        status, headers = status_of(cause)
        if status >= 400:
            return status_error(status, headers, detail)
    names = {base.__name__ for cause in errors for base in type(cause).__mro__}
    for name, (reason, again) in ERRORS.items():
        if name in names:
            return AcquireError(reason, again, detail)
    text = " ".join(map(str, errors)).lower()
    for pattern, (reason, again) in MESSAGES.items():
        if re.search(pattern, text):
            return AcquireError(reason, again, detail)
    return AcquireError(f"unknown-{type(errors[-1]).__name__}", LATER, detail)


def status_error(status: int, headers: Mapping[str, str], detail: str) -> AcquireError:
    """Return the failure that a status of HTTP means."""
    again = NOW if status in BUSY else LATER if status in (401, 403, 407) else NEVER
    return AcquireError(f"http-{status}", again, detail, retry_after(headers.get("Retry-After")))


def status_of(error: BaseException) -> tuple[int, Mapping[str, str]]:
    """Return HTTP status and headers as aiohttp, yt-dlp and botocore note them; 0 where there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        notes = response.get("ResponseMetadata", {})
        return int(notes.get("HTTPStatusCode", 0)), {"Retry-After": notes.get("HTTPHeaders", {}).get("retry-after")}
    status, headers = getattr(error, "status", 0), getattr(error, "headers", None) or getattr(response, "headers", None)
    return (status, headers or {}) if isinstance(status, int) else (0, {})


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, given as such or as a date; None where there are none."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
