"""Rate limits of hosts, shared by all processes of a machine or of a cluster.

A machine has one file for each host, which is locked while it is read and written. The machines of a cluster ask a
`Keeper` over TCP, one line of JSON for each question: file locks and clocks of several machines cannot be trusted.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import socketserver
import threading
import time
from pathlib import Path
from urllib.parse import quote

# A stored time further ahead than this is ignored: the clock has been set back since.
FAR = 3600.0
# With more hosts than this a keeper forgets those that may be asked at once.
MANY = 100_000


class Hosts:
    """The pace at which hosts are asked: at most `rate` requests a second each, none while a host is paused."""

    def __init__(self, folder: str | Path, rate: float) -> None:
        if rate <= 0:
            raise ValueError(f"rate: found {rate}, expected requests a second above 0")
        self.folder, self.interval = Path(folder), 1 / rate
        self.folder.mkdir(parents=True, exist_ok=True)

    def wait(self, host: str) -> None:
        """Sleep until it is this caller's turn to ask a host."""
        now = time.time()
        turn = self._move(host, lambda free: (max(now, free), max(now, free) + self.interval))
        time.sleep(max(0.0, turn - now))

    def pause(self, host: str, seconds: float) -> None:
        """Make every process wait this many seconds before it asks a host again."""
        until = time.time() + seconds
        self._move(host, lambda free: (free, max(free, until)))

    def _move(self, host: str, step) -> float:
        """Call `step` with the time from which a host is free; return its first value and store its second."""
        file = os.open(self.folder / quote(host, safe=""), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = os.read(file, 64)
            free = float(text or 0)
            result, then = step(free if free < time.time() + FAR else 0.0)
            os.pwrite(file, f"{then:020.6f}".encode(), 0)
        finally:
            os.close(file)
        return result


class FarHosts(Hosts):
    """The same pace, held for all machines by the keeper at `address`, "host:port"."""

    def __init__(self, address: str, rate: float) -> None:
        self.address, self.interval = address, 1 / rate

    def wait(self, host: str) -> None:
        time.sleep(self._ask({"host": host, "interval": self.interval}))

    def pause(self, host: str, seconds: float) -> None:
        self._ask({"host": host, "pause": seconds})

    def _ask(self, question: dict[str, str | float]) -> float:
        name, _, port = self.address.rpartition(":")
        with socket.create_connection((name, int(port)), timeout=60) as connection, connection.makefile("rw") as lines:
            lines.write(json.dumps(question) + "\n")
            lines.flush()
            return float(lines.readline())


class Keeper(socketserver.ThreadingTCPServer):
    """Keep the pace at which the processes of a cluster ask hosts; use it in a `with` block."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, name: str) -> None:
        super().__init__((name, 0), Answer)
        self.address = f"{name}:{self.server_address[1]}"
        self.free: dict[str, float] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> Keeper:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def move(self, host: str, interval: float = 0.0, pause: float = 0.0) -> float:
        """Reserve the next turn at a host and return the seconds until it; with `pause`, pause the host instead."""
        with self.lock:
            now = time.monotonic()
            if len(self.free) > MANY:
                self.free = {name: free for name, free in self.free.items() if free > now}
            turn = max(now, self.free.get(host, now))
            self.free[host] = max(turn + interval, now + pause)
        return turn - now


class Answer(socketserver.StreamRequestHandler):
    """One question to a keeper."""

    timeout = 60

    def handle(self) -> None:
        self.wfile.write(f"{self.server.move(**json.loads(self.rfile.readline(8192)))}\n".encode())
