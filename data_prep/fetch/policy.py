"""The settings of fetching."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videodiff.data.storage.web import Reach, host_and_port


@dataclass(frozen=True)
class FetchPolicy:
    """How videos are fetched; times in seconds.

    A host gets `rate` requests a second. A request that fails for now is tried up to `attempts` times in all. The first
    retry comes after `pause`, each further one after twice the time, or when the host says; never after more than
    `longest`. timeout: how long a host may be silent; deadline, max_bytes: limits for one video; height: most lines of
    a video from a page; cookies: a file in Netscape format, for pages; proxies: for pages and HTTP, used in turn;
    private: hosts that may be asked although they are not public, as host, host:port, address or network, True for all;
    storage: options of fsspec by scheme, such as `s3`; local: a path with `{id}` for the id of a video: a video that
    lies there is not fetched.
    """

    rate: float = 4.0
    attempts: int = 5
    pause: float = 1.0
    longest: float = 300.0
    timeout: float = 30.0
    deadline: float = 1800.0
    max_bytes: int = 16 * 2**30
    height: int = 720
    cookies: str | Path | None = None
    proxies: Sequence[str] = field(default=(), repr=False)
    private: bool | Sequence[str] = False
    storage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    local: str | None = None

    def __post_init__(self) -> None:
        times = self.pause, self.longest, self.timeout, self.deadline
        if min(self.attempts, self.height, self.max_bytes) < 1 or min(times) <= 0:
            raise ValueError(
                f"acquire: found attempts={self.attempts} height={self.height} max_bytes={self.max_bytes} "
                f"pause={self.pause} longest={self.longest} timeout={self.timeout} deadline={self.deadline}, expected "
                "at least 1 and times above 0"
            )
        if self.local is not None and "{id}" not in self.local:
            raise ValueError(f"acquire.local: found {self.local!r}, expected a path with {{id}} in it")
        if isinstance(self.private, str):
            raise ValueError(f"acquire.private: found {self.private!r}, expected true, false or a list of hosts")
        read_cookies(self.cookies)
        self.reach("")

    def reach(self, root: str) -> Reach:
        """Return which hosts may be asked, with the host of the root and the proxies."""
        named = () if isinstance(self.private, bool) else tuple(map(str, self.private))
        urls = [url for url in (root, *self.proxies) if "://" in url]
        return Reach((*named, *map(host_and_port, urls)), self.private is True)


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


DEFAULT = FetchPolicy()
