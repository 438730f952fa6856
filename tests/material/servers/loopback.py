"""A real nginx on loopback, and behind it a server that misbehaves in the ways that real ones do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CONFIGURATION = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  log_format short '$request_method $uri $status $http_range $http_cookie';
  access_log {folder}/access.log short;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  types {{ video/mp4 mp4; text/html html; application/vnd.apple.mpegurl m3u8; }}
  limit_req_zone $binary_remote_addr zone=slow:1m rate=20r/m;
  server {{
    listen 127.0.0.1:{port};
    root {files};
    location /throttled/ {{ limit_req zone=slow; limit_req_status 429; error_page 429 @later; alias {files}/; }}
    location @later {{ add_header Retry-After 3 always; return 429; }}
    location /no-ranges/ {{ max_ranges 0; alias {files}/; }}
    location /direct/ {{ types {{}} default_type video/mp4; alias {files}/; }}
    location = /bucket {{ default_type application/xml; return 200 '<ListBucketResult></ListBucketResult>'; }}
    location /secret/ {{ return 403; }}
    location /busy/ {{ return 503; }}
    location /broken/ {{ return 500; }}
    location /far/ {{ add_header Retry-After 86400 always; return 429; }}
    location /odd/ {{
      proxy_pass http://127.0.0.1:{odd}/; proxy_buffering off; proxy_read_timeout 600; proxy_http_version 1.1;
    }}
  }}
}}
"""


class Odd(BaseHTTPRequestHandler):
    """`/<how>/<file>`: sends a file and breaks off, hangs, trickles or is busy; `-once` means the first time only.

    whole: ranges are ignored, fickle: the first time only; later: a range begins a byte later; less: a range lacks the
    last byte that it states.
    """

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        how, name = self.path.lstrip("/").split("/", 1)
        self.server.asked[f"{self.command} {self.path}"] += 1
        first = self.server.asked[f"{self.command} {self.path}"] == 1
        if how.endswith("-once"):
            how = how.removesuffix("-once") if first else "whole" if how.startswith("whole") else "well"
        data = (self.server.files / name).read_bytes()
        asked = None if how.startswith(("whole", "fickle")) else self.headers.get("Range")
        start, last = (int(at or len(data) - 1) for at in (asked or "bytes=0-").removeprefix("bytes=").split("-"))
        start += how == "later"
        part = data[start : last + 1]
        stated, part = f"bytes {start}-{start + len(part) - 1}/{len(data)}", part[:-1] if how == "less" else part
        if how == "hang":
            self.server.released.wait(600)
        if how == "busy":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Type", "text/html" if ".html" in name else "video/mp4")
        if how != "endless":
            self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", stated)
        self.end_headers()
        if not body:
            return
        if how.endswith("cut"):
            self.wfile.write(part[: len(part) // 2])
        elif how == "trickle":
            for letter in part:
                self.wfile.write(bytes([letter]))
                if self.server.released.wait(0.1):
                    break
        elif how == "endless":
            while not self.server.released.is_set():
                self.wfile.write(part)
        else:
            self.wfile.write(part)
        self.close_connection = how.endswith("cut") or how in ("trickle", "endless")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class Site:
    """The address of a running nginx, the folder it serves, and the log of its answers."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.files, self.url = folder, folder / "files", f"http://127.0.0.1:{port}"

    def answered(self) -> list[str]:
        """Return one line for each request: method, path, status, range, cookies."""
        time.sleep(0.05)  # nginx writes its log after the answer
        return (self.folder / "access.log").read_text().splitlines()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Run nginx over `folder/files` until the block ends."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        missing = "found no nginx, expected the Debian package nginx-light: apt-get install nginx-light"
        # A laptop may do without; the check of a change may not.
        assert "CI" not in os.environ, missing
        pytest.skip(missing)
    here = Site(folder, free_port())
    here.files.mkdir(parents=True)
    odd = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    odd.daemon_threads, odd.block_on_close = True, False
    odd.files, odd.asked, odd.released = here.files, Counter(), threading.Event()
    threading.Thread(target=odd.serve_forever, daemon=True).start()
    port = int(here.url.rpartition(":")[2])
    text = CONFIGURATION.format(folder=folder, files=here.files, port=port, odd=odd.server_port)
    (folder / "nginx.conf").write_text(text)
    nginx = subprocess.Popen([program, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    try:
        wait_for(port, nginx, folder / "error.log")
        yield here
    finally:
        odd.released.set()
        odd.shutdown()
        odd.server_close()
        nginx.terminate()
        nginx.wait()


def wait_for(port: int, server: subprocess.Popen, log: Path) -> None:
    """Wait until a server listens."""
    for _ in range(200):
        assert server.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}")
