"""An S3 server in a thread of the test, which writes down what is asked of it and can keep a request waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import botocore.session
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Silent(WSGIRequestHandler):
    """Answers requests and prints nothing."""

    def log(self, *words: Any) -> None:
        """Print nothing."""


class ObjectStore:
    """moto with one bucket, `set`; `asked` holds the begin and the end of each request, such as `end PUT /set/a`."""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.asked: list[str] = []
        # Requests with this text wait until it is released.
        self.held, self.reached, self.released = "", threading.Event(), threading.Event()
        self.server = make_server("127.0.0.1", 0, self.serve, threaded=True, request_handler=Silent)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.client.create_bucket(Bucket="set")

    def serve(self, environ: dict[str, Any], begin: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.asked.append(f"begin {line}")
        if self.held and self.held in line:
            self.reached.set()
            self.released.wait(300)
        answer = self.app(environ, begin)
        self.asked.append(f"end {line}")
        return answer

    def hold(self, text: str) -> None:
        """Keep requests with this text waiting from now on."""
        self.held = text
        self.reached.clear(), self.released.clear()

    def release(self) -> None:
        """Answer what waits."""
        self.held = ""
        self.released.set()

    @cached_property
    def client(self) -> Any:
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        return botocore.session.get_session().create_client("s3", endpoint_url=self.url, **keys)

    def objects(self) -> dict[str, bytes]:
        """Return all that it holds."""
        found = self.client.list_objects_v2(Bucket="set").get("Contents", [])
        return {one["Key"]: self.client.get_object(Bucket="set", Key=one["Key"])["Body"].read() for one in found}


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Start a store and point at it as every AWS program is pointed."""
    store = ObjectStore()
    for name, value in {"AWS_ENDPOINT_URL": store.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        yield store
    finally:
        store.release()
        store.server.shutdown()
