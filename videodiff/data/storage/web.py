"""HTTP requests: the URL is sent byte for byte, only to permitted addresses, and every request has a time limit.

A URL in metadata, or a redirect, may point to a host that only this machine reaches. Therefore the host name is
resolved here, its address is checked, and the connection goes to exactly this address.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from videodiff.data.storage.address import without_secrets
from videodiff.data.storage.causes import chain

BLOCK = 2**18
HOPS = 10
REDIRECTS = (301, 302, 303, 307, 308)
PORTS = {"http": 80, "https": 443}
# The request target, byte for byte as in the URL.
TARGET: ContextVar[str | None] = ContextVar("target", default=None)


class PrivateHostError(Exception):
    """A host that is neither public nor allowed."""


class PrivateLookupError(PrivateHostError, OSError):
    """The same error as an OSError, which libraries expect from a failed lookup."""


class LateError(TimeoutError):
    """No answer, or no complete answer, within the time limit."""


class LostError(ConnectionError):
    """A host that cannot be reached, or that closed the connection before the answer was complete."""


class ShortError(LostError):
    """An answer that ended before it was complete."""


@dataclass(frozen=True)
class Reach:
    """Which hosts may be contacted: public ones, and allowed ones, given as host, host:port, address or network."""

    allowed: tuple[str, ...] = ()
    anywhere: bool = False

    def permits(self, host: str, port: int, address: str) -> bool:
        """Return whether a host may be contacted at an address."""
        if self.anywhere or not is_private(address):
            return True
        names = {host.lower(), f"{host.lower()}:{port}", f"[{host.lower()}]:{port}"}
        return any(name.lower() in names or in_network(address, name) for name in self.allowed)

    def addresses(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Resolve a host as `socket.getaddrinfo` does; PrivateHostError if none of its addresses is permitted."""
        found = RESOLVE(host, port, 0, socket.SOCK_STREAM)
        open = [place for place in found if self.permits(host, port, place[4][0])]
        if not open:
            raise PrivateHostError(
                f"found the address {found[0][4][0]} of {host}, expected a public address or an allowed host"
            )
        return open


RESOLVE = socket.getaddrinfo
ANYWHERE, PUBLIC = Reach(anywhere=True), Reach()


def is_private(address: str) -> bool:
    """Return whether an address is not public; IPv6 forms that contain an IPv4 address are unpacked first."""
    found: Any = ipaddress.ip_address(address.partition("%")[0])
    if found.version == 6:
        inside = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in ipaddress.ip_network("64:ff9b::/96"):
            inside = ipaddress.ip_address(int(found) & 0xFFFFFFFF)
        if inside and is_private(str(inside)):
            return True
        if inside:
            return False
    return not found.is_global or found.is_multicast or found.is_reserved


def in_network(address: str, network: str) -> bool:
    """Return whether an address lies in a network or equals it; False if `network` is not one."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def host_and_port(url: str) -> str:
    """Return the host of a URL with its port."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or PORTS.get(parts.scheme, 0)}"


@contextlib.contextmanager
def checked_lookups(reach: Reach) -> Iterator[list[str]]:
    """Check every host lookup of this process while the block runs, for libraries that open their own connections.

    They connect to the address that the lookup returns. Use it only in processes with one task at a time. Yields the
    list of refusals, because libraries may hide the error.
    """
    refused: list[str] = []

    reach = with_proxies(reach)

    def lookup(host: Any, port: Any, *rest: Any, **more: Any) -> list[tuple[Any, ...]]:
        name = host.decode() if isinstance(host, bytes) else host
        found = RESOLVE(host, port, *rest, **more)
        number = int(port) if str(port or "").isdigit() else PORTS.get(str(port), 0)
        open = [place for place in found if name is None or reach.permits(name, number, place[4][0])]
        if found and not open:
            refused.append(f"found the address {found[0][4][0]} of {name}, expected a public one")
            raise PrivateLookupError(refused[-1])
        return open

    socket.getaddrinfo = lookup
    try:
        yield refused
    finally:
        socket.getaddrinfo = RESOLVE


class Checked:
    """A connection to a checked address; it sends the target byte for byte, and the answer has a time limit."""

    reach = PUBLIC
    seconds = 60.0

    def _new_conn(self) -> socket.socket:
        name = self._dns_host
        try:
            places = self.reach.addresses(name.strip("[]"), self.port)
        except socket.gaierror as error:
            raise NewConnectionError(self, f"{name}: {error}") from error
        for number, place in enumerate(places, 1):
            self._dns_host = place[4][0]
            try:
                return super()._new_conn()
            except (ConnectTimeoutError, NewConnectionError):
                if number == len(places):
                    raise
            finally:
                self._dns_host = name
        raise AssertionError("the last address connects or raises")

    def putrequest(self, method: str, url: str, *rest: Any, **more: Any) -> None:
        super().putrequest(method, TARGET.get() or url, *rest, **more)

    def getresponse(self) -> Any:
        late = threading.Event()

        def cut() -> None:
            late.set()
            with contextlib.suppress(OSError, AttributeError):
                self.sock.shutdown(socket.SHUT_RDWR)

        # A timeout per read never fires while single bytes trickle in, so a timer closes the socket.
        timer = threading.Timer(self.seconds, cut)
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError) as error:
            if late.is_set():
                raise LateError(f"found no answer within {self.seconds:g} s") from error
            raise
        finally:
            timer.cancel()


class Adapter(HTTPAdapter):
    """An adapter for requests whose connections are `Checked`."""

    def __init__(self, reach: Reach) -> None:
        kinds = [("http", HTTPConnection, HTTPConnectionPool), ("https", HTTPSConnection, HTTPSConnectionPool)]
        self.pools = {
            scheme: type("Pool", (pool,), {"ConnectionCls": type("Connection", (Checked, kind), {"reach": reach})})
            for scheme, kind, pool in kinds
        }
        super().__init__(max_retries=0)

    def init_poolmanager(self, *settings: Any, **more: Any) -> None:
        super().init_poolmanager(*settings, **more)
        self.poolmanager.pool_classes_by_scheme = self.pools

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **more)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = self.pools
        return manager


@functools.lru_cache(maxsize=64)
def session_of(process: int, thread: int, reach: Reach) -> requests.Session:
    """Return a session with open connections; threads and forked processes must not share it."""
    session, adapter = requests.Session(), Adapter(with_proxies(reach))
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def with_proxies(reach: Reach) -> Reach:
    """Return a reach that also allows the proxies in the environment, which are the user's own."""
    proxies = [host_and_port(url) for url in getproxies().values() if "://" in url]
    return Reach((*reach.allowed, *proxies), reach.anywhere)


class Answer(NamedTuple):
    """The answer of a host: status, headers, final URL, and the body as a stream."""

    status: int
    headers: Mapping[str, str]
    url: str
    reply: requests.Response
    until: float

    def blocks(self, limit: int) -> Iterator[bytes]:
        """Yield at most `limit` bytes of the body; the rest is never read."""
        left = limit
        while left > 0:
            try:
                block = self.reply.raw.read1(min(BLOCK, left), decode_content=False)
            except urllib3.exceptions.ReadTimeoutError as error:
                raise LateError(innermost(error)) from error
            except (urllib3.exceptions.HTTPError, OSError, http.client.HTTPException) as error:
                raise ShortError(f"ended early: {innermost(error)}") from error
            if not block:
                return
            left -= len(block)
            yield block
            if time.monotonic() > self.until:
                raise LateError("found no end of the answer in time")


@contextlib.contextmanager
def asked(
    url: str,
    headers: Mapping[str, str],
    reach: Reach,
    seconds: float,
    timeout: tuple[float, float] = (10.0, 60.0),
    proxy: str | None = None,
    own: bool = False,
) -> Iterator[Answer]:
    """Request a URL, follow redirects, and yield the answer while the block runs.

    `seconds`: time limit of the whole request. `timeout`: seconds to connect, and between two reads. `own`: the user
    named this URL, so its host may be any; if it is private, it may redirect to other private hosts.
    """
    until, first = time.monotonic() + seconds, url
    for hop in range(HOPS):
        here = ANYWHERE if own and hop == 0 else reach
        try:
            reply = send(url, headers, here, timeout, proxy)
        except PrivateHostError:
            if not own or not is_inside(first):
                raise
            reply = send(url, headers, ANYWHERE, timeout, proxy)
        with contextlib.closing(reply):
            place = reply.headers.get("location")
            if reply.status_code not in REDIRECTS or not place:
                yield Answer(reply.status_code, reply.headers, url, reply, until)
                return
        url = urljoin(url, quote(place.encode("latin-1"), safe=SAFE))
        if urlsplit(url).scheme not in PORTS:
            raise LostError(f"found a redirect to {without_secrets(url)}, expected http or https")
        if time.monotonic() > until:
            raise LateError("found no end of redirects in time")
    raise LostError(f"found over {HOPS} redirects, expected fewer")


# Characters that a URL may contain are not quoted again.
SAFE = "!#$%&'()*+,/:;=?@[]~\"<>\\^`{|}"


def is_inside(url: str) -> bool:
    """Return whether the host of a URL has no public address."""
    parts = urlsplit(url)
    try:
        return all(is_private(place[4][0]) for place in RESOLVE(parts.hostname, None, 0, socket.SOCK_STREAM))
    except socket.gaierror:
        return False


def send(
    url: str, headers: Mapping[str, str], reach: Reach, timeout: tuple[float, float], proxy: str | None
) -> requests.Response:
    """Send one request and return the response; its body is not read yet."""
    session = session_of(os.getpid(), threading.get_ident(), reach)
    try:
        request = session.prepare_request(requests.Request("GET", url, {"Accept-Encoding": "identity", **headers}))
        settings = session.merge_environment_settings(request.url, {"http": proxy, "https": proxy} if proxy else {}, True, None, None)  # fmt: skip  # noqa: E501
        target, through = target_of(url), select_proxy(request.url, settings["proxies"])
        if through:
            check_name(url, reach)
            if url.startswith("http://"):
                target = f"http://{urlsplit(url).netloc.rpartition('@')[2]}{target}"
        token = TARGET.set(target)
        try:
            return session.send(request, timeout=timeout, allow_redirects=False, **settings)
        finally:
            TARGET.reset(token)
    except requests.Timeout as error:
        raise LateError(innermost(error)) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        late = next((cause for cause in chain(error) if isinstance(cause, LateError)), None)
        raise late or LostError(innermost(error)) from error


def target_of(url: str) -> str:
    """Return the request target of a URL: path and query, byte for byte; only non-ASCII characters are quoted."""
    rest = re.sub(r"^[A-Za-z]+://[^/?#]*", "", url).partition("#")[0]
    return quote(rest if rest.startswith("/") else f"/{rest}", safe=SAFE)


def check_name(url: str, reach: Reach) -> None:
    """Raise if a URL that a proxy will resolve names a private address or this host."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    address = "127.0.0.1" if host == "localhost" or host.endswith(".localhost") else host
    with contextlib.suppress(ValueError):
        if not reach.permits(host, parts.port or PORTS[parts.scheme], address):
            raise PrivateHostError(f"found the address {address} of {host}, expected a public one")


def innermost(error: BaseException) -> str:
    """Return the message of the innermost cause of an error, without secrets."""
    *_, last = chain(error)
    return without_secrets(str(last)) or type(last).__name__
