"""A request goes out as its URL is given, to public hosts alone, and what is told of it holds no secret."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.books.request import ClipRequest, InputError, Place, admitted, checked_url
from data_prep.fetch.acquire import Acquirer, fits
from data_prep.fetch.failures import AcquireError
from data_prep.fetch.policy import FetchPolicy
from videodiff.data.storage import remote, web
from videodiff.data.storage.address import bare_url, is_secret, join_url, mark_of, printable, without_secrets
from videodiff.data.storage.remote import RemoteError, Url
from videodiff.data.storage.web import (
    PUBLIC,
    LateError,
    LostError,
    PrivateHostError,
    Reach,
    asked,
    checked_lookups,
    is_private,
)

DATA = bytes(range(256)) * 8
PLAIN = 'a b#c?d%20e&f+g"é.mp4'


class Raw(http.server.BaseHTTPRequestHandler):
    """A server that notes what it is asked for, byte for byte, and answers as the path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.lines.append(self.raw_requestline.decode("latin-1").split(" ")[1])
        how = self.path.lstrip("/").split("/")[0].split("?")[0]
        if how == "to":
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2] or self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, stop = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = DATA[start : stop + 1]
        if how == "dripping-head":
            for letter in b"HTTP/1.1 206 OK\r\nX: " + b"x" * 1000:
                self.wfile.write(bytes([letter]))
                if self.server.over.wait(0.05):
                    break
            return
        self.send_response(206)
        size = len(part)
        if how == "huge":
            part = b"\0" * 2**20
            size = 2**32
        self.send_header("Content-Range", f"bytes {start + (how == 'other')}-{start + len(part) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.server.sent = 0
        if how == "dripping":
            for letter in part:
                self.wfile.write(bytes([letter]))
                if self.server.over.wait(0.05):
                    return
        try:
            while how == "huge" and not self.server.over.is_set():
                self.server.sent += self.wfile.write(part)
            self.wfile.write(part)
        except OSError:
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Raw)
    found.daemon_threads, found.lines, found.over = True, [], threading.Event()
    found.url = f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.over.set()
    found.shutdown()
    found.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote, "WAIT", 0.01)


def fetch(folder: Path, source: str, **options: object) -> bytes:
    policy = {"rate": 1000.0, "attempts": 1, "pause": 0.01, **options}
    root = policy.pop("root", ".")
    request = admitted(ClipRequest(Place("list.csv", 1), source))
    return Acquirer(folder, root, FetchPolicy(**policy)).fetch(request).path.read_bytes()


TARGETS = [
    "/a%2Fb%40c.mp4?X-Amz-Credential=AK%2F2026%2fus&X-Amz-Signature=ab%7E&x=%41",
    "/d//e/../f.mp4",
    "/g.mp4?a=1&&b='(){}|^`<>&c=[1]",
    "/h~%7e.mp4?q=a+b%20c",
    "/*,;:@!$.mp4",
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_url_that_is_given_goes_out_byte_for_byte(tmp_path, server, target) -> None:
    server.lines.clear()
    assert fetch(tmp_path, server.url + target, private=True) == DATA
    assert b"".join(Url(server.url + target).pieces()) == DATA
    assert server.lines == [target, target]


@pytest.mark.parametrize("target", TARGETS)
def test_so_does_one_that_a_host_sends_on_to(tmp_path, server, target) -> None:
    server.lines.clear()
    assert fetch(tmp_path, f"{server.url}/to/x.mp4?{server.url}{target}", private=True) == DATA
    assert server.lines[1:] == [target]


def test_a_name_that_is_joined_to_a_root_is_quoted(tmp_path, server) -> None:
    server.lines.clear()
    quoted = "/set/a%20b%23c%3Fd%2520e%26f%2Bg%22%C3%A9.mp4"
    assert fetch(tmp_path, PLAIN, root=f"{server.url}/set/") == DATA
    assert b"".join((Url(f"{server.url}/set") / PLAIN).pieces()) == DATA
    (Url(f"{server.url}/set?sig=a%2Fb") / PLAIN).open().close()
    assert server.lines == [quoted, quoted, f"{quoted}?sig=a%2Fb"]
    place = Url(f"{server.url}/set?v=1") / PLAIN
    assert (place.name, place.parent.text) == (PLAIN, f"{server.url}/set?v=1")
    assert join_url("s3://bucket/set", PLAIN) == f"s3://bucket/set/{PLAIN}"
    assert Url("s3://bucket/a#b?c.tar").name == "a#b?c.tar"


def test_a_blank_is_named_in_a_url_and_allowed_in_a_key() -> None:
    with pytest.raises(InputError, match=r"found a blank in .*, expected %20"):
        checked_url("http://host/a b.mp4")
    assert checked_url("s3://bucket/a b.mp4") == "s3://bucket/a b.mp4"
    with pytest.raises(InputError, match="bad-url"):
        checked_url("http://host:port/a.mp4")


ADDRESSES = {
    "127.0.0.1": True,
    "127.9.9.9": True,
    "10.1.2.3": True,
    "172.16.0.1": True,
    "192.168.0.1": True,
    "169.254.169.254": True,
    "100.64.0.1": True,
    "0.0.0.0": True,
    "224.0.0.1": True,
    "255.255.255.255": True,
    "::1": True,
    "::": True,
    "fe80::1%eth0": True,
    "fd00:ec2::254": True,
    "::ffff:10.0.0.1": True,
    "::ffff:8.8.8.8": False,
    "64:ff9b::a9fe:a9fe": True,
    "2002:7f00:1::": True,
    "ff02::1": True,
    "8.8.8.8": False,
    "2001:4860:4860::8888": False,
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_inside_are_known_in_every_form(address) -> None:
    assert is_private(address) is ADDRESSES[address]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize("path", ["a.mp4", "page"])
def test_metadata_leads_to_no_host_inside(tmp_path, server, host, path) -> None:
    server.lines.clear()
    with pytest.raises(AcquireError) as caught:
        fetch(tmp_path, f"http://{host}:{server.server_port}/{path}")
    assert (caught.value.reason, caught.value.retryable, server.lines) == ("private-address", True, [])


def test_a_redirect_leads_to_no_host_inside(tmp_path, server) -> None:
    server.lines.clear()
    root = server.url.replace("127.0.0.1", "localhost")
    with pytest.raises(AcquireError, match="private-address"):
        fetch(tmp_path, f"{root}/to/x.mp4?{server.url}/a.mp4", root=root)
    assert server.lines == [f"/to/x.mp4?{server.url}/a.mp4"]


@pytest.mark.parametrize("named", ["127.0.0.1", "127.0.0.0/8"])
def test_hosts_that_are_named_may_be_asked(tmp_path, server, named) -> None:
    assert fetch(tmp_path, f"{server.url}/a.mp4", private=[named]) == DATA
    assert fetch(tmp_path / "root", "a.mp4", root=server.url) == DATA
    with pytest.raises(AcquireError, match="private-address"):
        fetch(tmp_path / "other", f"{server.url}/a.mp4", private=["nas.local"])


def test_the_address_that_was_looked_at_is_the_one_connected_to(tmp_path, server, monkeypatch) -> None:
    asked_for = []

    def rebinding(host: str, port: int, *rest: object, **more: object) -> list:
        """Give a public address first, and then the one inside."""
        asked_for.append(host)
        address = "192.0.2.1" if asked_for.count(host) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    connected = []
    monkeypatch.setattr(web, "RESOLVE", rebinding)
    monkeypatch.setattr(web, "is_private", lambda address: address.startswith("127."))
    monkeypatch.setattr(
        "urllib3.util.connection.create_connection", lambda place, *rest, **more: connected.append(place[0]) or 1 / 0
    )
    with pytest.raises(AcquireError, match="division by zero"):
        fetch(tmp_path, "http://rebinds.example/a.mp4")
    assert (connected, asked_for) == (["192.0.2.1"], ["rebinds.example"])


def test_look_ups_of_other_libraries_are_checked(server) -> None:
    with checked_lookups(PUBLIC), pytest.raises(PrivateHostError):
        socket.create_connection(("127.0.0.1", server.server_port))
    with checked_lookups(Reach((f"127.0.0.1:{server.server_port}",))):
        socket.create_connection(("127.0.0.1", server.server_port)).close()
    socket.create_connection(("127.0.0.1", server.server_port)).close()


def test_the_users_own_url_may_be_inside_and_send_on_inside_but_no_public_one(server, monkeypatch) -> None:
    assert b"".join(Url(f"{server.url}/to/x?{server.url}/a").pieces()) == DATA
    first = server.url.replace("127.0.0.1", "localhost")
    monkeypatch.setattr(web, "is_inside", lambda url: False)  # as if the first host were a public one
    with pytest.raises(RemoteError, match="found a redirect from a public host to a private one"):
        remote.fetch(Url(f"{first}/to/x?{server.url}/a"), 0, 10)


def test_an_answer_that_is_longer_than_asked_for_is_cut_off(tmp_path, server) -> None:
    with pytest.raises(RemoteError, match="found more bytes in an answer, expected the 1 of"):
        remote.fetch(Url(f"{server.url}/huge/a"), 0, 1)
    with pytest.raises(AcquireError, match="wrong-range"):
        fetch(tmp_path, f"{server.url}/huge/a.mp4", private=True)
    assert server.sent < 2**27
    with pytest.raises(RemoteError, match="found the range bytes 1-"):
        remote.fetch(Url(f"{server.url}/other/a"), 0, 10)


@pytest.mark.parametrize("how", ["dripping", "dripping-head"])
def test_a_host_that_answers_byte_by_byte_is_left(server, monkeypatch, how) -> None:
    monkeypatch.setattr(web.Checked, "seconds", 0.5)
    begun = time.monotonic()
    with (
        pytest.raises(LateError),
        asked(f"{server.url}/{how}/a", {"Range": "bytes=0-99"}, Reach(anywhere=True), 0.5) as reply,
    ):
        b"".join(reply.blocks(100))
    assert time.monotonic() - begun < 3


def test_a_circle_of_redirects_ends(server) -> None:
    circle = f"{server.url}/to/x?"
    with pytest.raises(LostError, match="over 10 redirects"), asked(circle, {}, Reach(anywhere=True), 5) as reply:
        b"".join(reply.blocks(100))


SECRET = "https://me:pw@h.org:8/a/b.mp4?v=1&X-Amz-Credential=A%2Fb&X-Amz-Signature=dead&keyword=cat"
BARE = "https://h.org:8/a/b.mp4?v=1&keyword=cat"


def test_a_url_loses_what_opens_it_and_nothing_else() -> None:
    assert bare_url(SECRET) == BARE
    for url in (BARE, "s3://bucket/a#b@c.mp4", "https://www.youtube.com/watch?v=key-token_1", "http://h/@me/a.mp4"):
        assert bare_url(url) == url
    assert bare_url("https://a.blob.core.windows.net/c/b.mp4?sv=2&se=3&sr=b&sp=r&sig=x%3D") == (
        "https://a.blob.core.windows.net/c/b.mp4"
    )
    assert bare_url("https://h/a#access_token=1") == "https://h/a"
    for name in ("sig", "api_key", "accessToken", "Signature", "X-Goog-Expires", "hdnts", "auth", "Key-Pair-Id"):
        assert is_secret(name), name
    for name in ("keyword", "monkey", "design", "v", "author", "passage", "page", "id"):
        assert not is_secret(name), name


def test_a_new_signature_is_the_same_clip_and_another_key_another_one() -> None:
    ids = {admitted(ClipRequest(Place("x"), SECRET.replace("dead", new))).id for new in ("dead", "beef")}
    assert ids == {ClipRequest(Place("x"), BARE).id}
    one, two = (admitted(ClipRequest(Place("x"), f"https://h/get?key={name}.mp4")) for name in "ab")
    assert (one.source, one.source == two.source, one.id == two.id) == ("https://h/get", True, False)
    assert (one.address, "a.mp4" in repr(one)) == ("https://h/get?key=a.mp4", False)
    assert (mark_of(SECRET), len(one.mark)) == ("", 16)


def test_what_is_told_of_a_failure_has_no_secret() -> None:
    told = AcquireError("x", "now", f"Max retries exceeded with url: /b.mp4?X-Amz-Signature=dead ({SECRET}) \x1b[31m")
    assert not any(secret in str(told) for secret in ("dead", "pw@", "A%2Fb", "\x1b"))
    assert without_secrets("found a/b?sig, expected c@d") == "found a/b?sig, expected c@d"
    assert printable("red\x1b[31m \u202egpj.exe\n") == "red\\x1b[31m \\u202egpj.exe\\n"
    assert printable("é 動画 ok") == "é 動画 ok"


def test_the_shorter_side_of_a_page_is_limited() -> None:
    sizes = [(720, 1280), (1280, 720), (406, 720), (1080, 1920), (None, 720), (None, None)]
    found = [fits({"width": w, "height": h, "protocol": "https"}, 720) for w, h in sizes]
    assert found == [True, True, True, False, True, True]
    assert not fits({"width": 10, "height": 10, "protocol": "rtmp"}, 720)
