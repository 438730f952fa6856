"""Captions by any server that speaks OpenAI's chat completions, such as vLLM; frames travel as JPEG in the request."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from data_prep.caption.frames import read_frames, to_jpeg
from data_prep.caption.reply import Failed, Reply
from data_prep.fetch.failures import NOW, AcquireError, classify
from videodiff.data.video.decode import DecodeError

Answers = list[tuple[str, Reply | Failed]]
PATH = "/chat/completions"
# Bytes of a reply; more is no caption.
LONGEST_REPLY = 2**22


class Endpoint:
    """Ask a server for captions, `concurrency` requests at a time, one clip each.

    url: with the version, such as `http://host:8000/v1`; model: by the name that the server knows; key: the name of an
    environment variable, never the key itself. A request that fails for now is tried up to `attempts` times in
    all. The first retry comes after `pause` seconds, each further one after twice the time, or when the server says;
    never after more than `longest` seconds. While the server says that it is busy, all requests wait. timeout: seconds
    for one request; body: further fields of the request, null to leave a field out.
    """

    def __init__(
        self,
        url: str,
        model: str,
        prompt: str,
        frames: int,
        side: int,
        max_tokens: int,
        key: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        attempts: int = 5,
        body: Mapping[str, Any] | None = None,
        pause: float = 1.0,
        longest: float = 300.0,
    ) -> None:
        if concurrency < 1 or attempts < 1 or min(timeout, pause, longest) <= 0:
            raise ValueError(
                f"caption: found concurrency={concurrency} attempts={attempts} timeout={timeout}, expected at least 1, "
                "at least 1, above 0"
            )
        self.url, self.key = checked_url(url), read_key(key)
        self.frames, self.side, self.prompt = frames, side, prompt
        fields = {"model": model, "max_tokens": max_tokens, "temperature": 0, **(body or {})}
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.concurrency, self.timeout, self.attempts = concurrency, timeout, attempts
        self.pause, self.longest, self.free = pause, longest, 0.0

    def answers(self, clips: Iterable[tuple[str, Path]]) -> Iterator[Answers]:
        """Yield the answer for each clip, given as id and file, in the order in which they come."""
        clips = iter(clips)
        with asyncio.Runner() as runner:
            session = runner.run(self._open())
            asking: set[asyncio.Task] = set()
            try:
                while True:
                    more = islice(clips, self.concurrency - len(asking))
                    asking |= {runner.get_loop().create_task(self._answer(session, *clip)) for clip in more}
                    if not asking:
                        return
                    done, asking = runner.run(first_of(asking))
                    for task in done:
                        yield [task.result()]
            finally:
                runner.run(end(asking, session))

    async def _open(self) -> aiohttp.ClientSession:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        timeout = aiohttp.ClientTimeout(total=self.timeout, sock_connect=min(self.timeout, 30))
        pool = aiohttp.TCPConnector(limit=self.concurrency)
        return aiohttp.ClientSession(headers=headers, timeout=timeout, connector=pool, trust_env=True)

    async def _answer(self, session: aiohttp.ClientSession, clip: str, path: Path) -> tuple[str, Reply | Failed]:
        """Return the answer for a clip after as many attempts as may help."""
        try:
            request = await asyncio.to_thread(self._request, path)
        except DecodeError as error:
            return clip, Failed("undecodable", False, str(error))
        loop = asyncio.get_running_loop()
        for number in range(self.attempts):
            # Requests that waited for a busy server must not all come back at the same moment.
            while (wait := self.free - loop.time()) > 0:
                await asyncio.sleep(wait + random.uniform(0, self.pause))
            try:
                return clip, await self._ask(session, request)
            except TimeoutError:
                failure = AcquireError("timeout", NOW, f"found no whole answer within {self.timeout:g} s")
            except Exception as error:
                failure = classify(error)
            wait = self.pause * 2**number * random.uniform(0.5, 1.5) if failure.wait is None else failure.wait
            if failure.again != NOW or number + 1 == self.attempts or wait > self.longest:
                # A model that is missing today may be there tomorrow: not a permanent failure.
                later = failure.retryable or failure.reason == "http-404"
                return clip, Failed(failure.reason, later, self._unkeyed(failure.detail))
            if failure.busy:
                self.free = max(self.free, loop.time() + wait)
            else:
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns")

    def _request(self, path: Path) -> bytes:
        images = [base64.b64encode(to_jpeg(frame)).decode() for frame in read_frames(path, self.frames, self.side)]
        parts = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}} for image in images]
        content = [*parts, {"type": "text", "text": self.prompt}]
        return json.dumps({**self.fields, "messages": [{"role": "user", "content": content}]}).encode()

    async def _ask(self, session: aiohttp.ClientSession, request: bytes) -> Reply:
        kind = {"Content-Type": "application/json"}
        async with session.post(self.url, data=request, headers=kind, allow_redirects=False) as response:
            found = bytearray()
            async for block in response.content.iter_chunked(2**16):
                found += block
                if len(found) > LONGEST_REPLY:
                    raise AcquireError("bad-reply", NOW, f"found over {LONGEST_REPLY} bytes, expected a caption")
            if response.status != 200:
                words = " ".join(found[:300].decode(errors="replace").split())
                raise aiohttp.ClientResponseError(
                    response.request_info, (), status=response.status, message=words, headers=response.headers
                )
        return read_reply(bytes(found))

    def _unkeyed(self, detail: str) -> str:
        """Return a text without the key, which some servers repeat."""
        return detail.replace(self.key, "***") if self.key else detail


async def first_of(tasks: set[asyncio.Task]) -> tuple[set[asyncio.Task], set[asyncio.Task]]:
    """Return the tasks that are done, at least one, and the others."""
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def end(tasks: set[asyncio.Task], session: aiohttp.ClientSession) -> None:
    """Cancel the open requests and close the connections."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await session.close()


def read_reply(data: bytes) -> Reply:
    """Return the text of a chat completion; an AcquireError if the bytes are not a chat completion."""
    try:
        choice = json.loads(data)["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        text, refusal, finish = 0, None, None
    if not isinstance(text or "", str) or text == 0:
        start = " ".join(data[:200].decode(errors="replace").split())
        raise AcquireError("bad-reply", NOW, f"found {start!r}, expected JSON with choices[0].message.content")
    if refusal or finish == "content_filter":
        return Reply(str(refusal or text or ""), "refusal")
    return Reply(text or "", "length" if finish == "length" else "stop")


def checked_url(url: str) -> str:
    """Return the URL for completions; ValueError if the given URL is invalid or holds a key."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
        good = good and not re.search(r"[\x00-\x20\x7f]", url) and (parts.port is None or parts.port > 0)
        secret = parts.username or parts.password
    except (ValueError, TypeError, AttributeError):
        good, secret = False, None
    if secret:
        raise ValueError(
            "caption.url: found a user or password in it, expected the key in a variable that caption.key names"
        )
    if not good:
        raise ValueError(f"caption.url: found {url!r}, expected one such as http://localhost:8000/v1")
    return url.rstrip("/").removesuffix(PATH) + PATH


def read_key(name: str | None) -> str:
    """Return the key in an environment variable, empty without a name; an unset variable is a ValueError."""
    if name is None:
        return ""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,99}", name):
        # It may be the key itself, which must not get into a log.
        raise ValueError(
            "caption.key: found something else, expected the name of an environment variable, such as OPENAI_API_KEY"
        )
    if not os.environ.get(name):
        raise ValueError(f"caption.key: found no environment variable {name}, expected the key in it")
    return os.environ[name].strip()
