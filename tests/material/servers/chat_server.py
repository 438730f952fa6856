"""A server on loopback that speaks OpenAI's chat completions, and misbehaves as real ones do."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

Act = Callable[[int, dict[str, Any]], tuple]


def images_in(request: dict[str, Any]) -> list[np.ndarray]:
    """Return the frames of a request, BGR."""
    (message,) = request["messages"]
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    datas = [base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) for url in urls]
    return [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in datas]


def name_of(request: dict[str, Any]) -> str:
    """Return a name for the clip of a request."""
    return hashlib.sha256(b"".join(image.tobytes() for image in images_in(request))).hexdigest()[:8]


def well(number: int, request: dict[str, Any]) -> tuple:
    """Answer correctly, with a prefix."""
    return "say", f"The video shows clip {name_of(request)}."


class Chat(BaseHTTPRequestHandler):
    """Does what `server.act(number, request)` says: say TEXT, send BYTES, status CODE HEADERS, hang or drop."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.requests)
            server.requests.append((self.path, dict(self.headers), request))
            server.under_way += 1
            server.most = max(server.most, server.under_way)
        try:
            self.answer(*server.act(number, request))
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, how: str, what: Any = None, headers: dict[str, str] | None = None) -> None:
        if how == "hang":
            self.server.released.wait(600)
        if how in ("hang", "drop"):
            self.close_connection = True
            return
        if how == "say":
            message = what if isinstance(what, dict) else {"role": "assistant", "content": what}
            choice = {"index": 0, "message": message, "finish_reason": (headers or {}).get("finish", "stop")}
            data, status, headers = json.dumps({"choices": [choice]}).encode(), 200, {}
        else:
            data, status = (what, 200) if how == "send" else (b'{"error": "no"}', what)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    """Records every request: path, headers, body."""

    daemon_threads, block_on_close = True, False

    def __init__(self, act: Act, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Chat)
        self.act, self.requests, self.released, self.lock = act, [], threading.Event(), threading.Lock()
        self.under_way = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def asked(self) -> list[str]:
        """Return the names of the clips asked about, in order."""
        return [name_of(request) for _, _, request in self.requests]


@contextmanager
def chat_server(act: Act = well) -> Iterator[Server]:
    """Run a server until the block ends."""
    server = Server(act)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
