"""The web: a request goes out byte for byte as its URL is given, to an address that may be asked, and ends in time.

Whoever names a URL in metadata, or answers with a redirect, may mean a host that only this machine reaches. So a host
is resolved here, its address is looked at, and that very address is connected to.
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

BLOCK = 2**18
HOPS = 10
REDIRECTS = (301, 302, 303, 307, 308)
PORTS = {"http": 80, "https": 443}
# What a request asks for, as it stands in its URL.
TARGET: ContextVar[str | None] = ContextVar("target", default=None)


class PrivateHostError(Exception):
    """A host that is not public and was not allowed."""


class PrivateLookupError(PrivateHostError, OSError):
    """The same, as libraries expect what goes wrong with a look-up."""


class LateError(TimeoutError):
    """An answer that did not come, or not to its end, in time."""


class LostError(ConnectionError):
    """A host that cannot be reached, or that ended an answer before it was whole."""


class ShortError(LostError):
    """An answer that ended before it was whole."""


@dataclass(frozen=True)
class Reach:
    """Which hosts may be asked: public ones, and those that are named as host, host:port, address or network."""

    allowed: tuple[str, ...] = ()
    anywhere: bool = False

    def permits(self, host: str, port: int, address: str) -> bool:
        """Tell whether a host may be asked at an address."""
        if self.anywhere or not is_private(address):
            return True
        names = {host.lower(), f"{host.lower()}:{port}", f"[{host.lower()}]:{port}"}
        return any(name.lower() in names or in_network(address, name) for name in self.allowed)

    def addresses(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Return where a host is, as `socket.getaddrinfo` does; PrivateHostError where it may not be asked there."""
        found = RESOLVE(host, port, 0, socket.SOCK_STREAM)
        open = [place for place in found if self.permits(host, port, place[4][0])]
        if not open:
            raise PrivateHostError(
                f"found the address {found[0][4][0]} of {host}, expected a public one, or the host among those allowed"
            )
        return open


RESOLVE = socket.getaddrinfo
ANYWHERE, PUBLIC = Reach(anywhere=True), Reach()


def is_private(address: str) -> bool:
    """Tell whether an address is one that not everybody reaches, also behind the forms that carry an IPv4 address."""
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
    """Tell whether an address is of a network, or is this address; what is no network has none."""
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
    """Have every look-up of a host in this process checked, for libraries with connections of their own.

    They connect to what the look-up gives. It is for processes with one task at a time. Gives the list of what was
    refused, as libraries may hide it.
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
    """A connection to an address that was looked at, which asks for what is given, and waits so long for an answer."""

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
        raise AssertionError("the last place connects or raises")

    def putrequest(self, method: str, url: str, *rest: Any, **more: Any) -> None:
        super().putrequest(method, TARGET.get() or url, *rest, **more)

    def getresponse(self) -> Any:
        late = threading.Event()

        def cut() -> None:
            late.set()
            with contextlib.suppress(OSError, AttributeError):
                self.sock.shutdown(socket.SHUT_RDWR)

        # Bytes that come one by one never let a wait for the next one end.
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
    """Connections that are `Checked`."""

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
    """Return connections that stay open; they may not be shared among threads, nor with a forked process."""
    session, adapter = requests.Session(), Adapter(with_proxies(reach))
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def with_proxies(reach: Reach) -> Reach:
    """Return a reach that has the proxies which the environment names: the user's own."""
    proxies = [host_and_port(url) for url in getproxies().values() if "://" in url]
    return Reach((*reach.allowed, *proxies), reach.anywhere)


class Answer(NamedTuple):
    """What a host answered: its status and headers, the URL that it stands at, and the bytes as they come."""

    status: int
    headers: Mapping[str, str]
    url: str
    reply: requests.Response
    until: float

    def blocks(self, limit: int) -> Iterator[bytes]:
        """Yield the bytes of the answer, `limit` of them at most; the rest is never read."""
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
    """Ask for a URL, follow where it is sent on, and give the answer while the block lasts.

    seconds: for all of it; timeout: to connect, and without a sign of life. `own`: the user named this URL, and its
    host may be any. Where such a host is not public, it may send on to others like it.
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


# All that a URL may hold stays as it is.
SAFE = "!#$%&'()*+,/:;=?@[]~\"<>\\^`{|}"


def is_inside(url: str) -> bool:
    """Tell whether the host of a URL has no public address."""
    parts = urlsplit(url)
    try:
        return all(is_private(place[4][0]) for place in RESOLVE(parts.hostname, None, 0, socket.SOCK_STREAM))
    except socket.gaierror:
        return False


def send(
    url: str, headers: Mapping[str, str], reach: Reach, timeout: tuple[float, float], proxy: str | None
) -> requests.Response:
    """Send one request and return the answer, of which the bytes have yet to be read."""
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
        late = next((cause for cause in chain_of(error) if isinstance(cause, LateError)), None)
        raise late or LostError(innermost(error)) from error


def target_of(url: str) -> str:
    """Return what is asked of a host for a URL: path and query, byte for byte; what is no ASCII is quoted."""
    rest = re.sub(r"^[A-Za-z]+://[^/?#]*", "", url).partition("#")[0]
    return quote(rest if rest.startswith("/") else f"/{rest}", safe=SAFE)


def check_name(url: str, reach: Reach) -> None:
    """Raise where a URL that a proxy will resolve names a host inside by its address, or this one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    address = "127.0.0.1" if host == "localhost" or host.endswith(".localhost") else host
    with contextlib.suppress(ValueError):
        if not reach.permits(host, parts.port or PORTS[parts.scheme], address):
            raise PrivateHostError(f"found the address {address} of {host}, expected a public one")


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came of."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def innermost(error: BaseException) -> str:
    """Return what went wrong at last, without the layers that passed it on, and without secrets."""
    *_, last = chain_of(error)
    return without_secrets(str(last)) or type(last).__name__
