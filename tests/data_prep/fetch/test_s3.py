"""An object store: nginx answers as S3 does for what is read from it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.books.request import ClipRequest, Part, Place
from data_prep.fetch import acquire
from data_prep.fetch.acquire import Acquirer
from data_prep.fetch.failures import AcquireError
from data_prep.fetch.policy import FetchPolicy
from tests.material.servers.loopback import Site, site

LARGE = random.Random(1).randbytes(acquire.BLOCK + 12_345)
KEYS = {"key": "someone", "secret": "something"}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("web")) as here:
        (here.files / "bucket").mkdir()
        (here.files / "bucket" / "large.mp4").write_bytes(LARGE)
        yield here


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have no credentials lie about."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fetch(folder: Path, web: Site, source: str, part: Part | None = None, **options: object) -> bytes:
    storage = {"s3": {"endpoint_url": web.url, "skip_instance_cache": True, **options}}
    acquirer = Acquirer(folder, policy=FetchPolicy(rate=100, attempts=1, storage=storage))
    return acquirer.fetch(ClipRequest(Place("list.jsonl", 1), source, part=part)).path.read_bytes()


def test_an_object_comes_whole_or_in_part(tmp_path: Path, web: Site) -> None:
    assert fetch(tmp_path, web, "s3://bucket/large.mp4", **KEYS) == LARGE
    assert fetch(tmp_path, web, "s3://bucket/large.mp4", Part("x.mp4", 100, 50), **KEYS) == LARGE[100:150]


def test_an_object_replaced_by_one_of_its_size_is_not_mixed_with_it(
    tmp_path: Path, web: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, check = web.files / "bucket" / "replaced.mp4", Acquirer._check
    path.write_bytes(LARGE)

    def replacing(self: Acquirer, size: int, until: float) -> None:
        # After the first block.
        if any(file.stat().st_size for file in tmp_path.glob(".*.partial/video")):
            path.write_bytes(LARGE[::-1])
            os.utime(path, (1_000_000_000, 1_000_000_000))
        check(self, size, until)

    monkeypatch.setattr(Acquirer, "_check", replacing)
    with pytest.raises(AcquireError) as caught:
        fetch(tmp_path, web, "s3://bucket/replaced.mp4", **KEYS)
    assert (caught.value.reason, caught.value.retryable) == ("changed", True)


def test_a_missing_object_and_missing_credentials_are_told_apart(tmp_path: Path, web: Site) -> None:
    with pytest.raises(AcquireError) as caught:
        fetch(tmp_path, web, "s3://bucket/none.mp4", **KEYS)
    assert (caught.value.reason, caught.value.retryable) == ("missing", False)
    with pytest.raises(AcquireError) as caught:
        fetch(tmp_path, web, "s3://bucket/large.mp4")
    assert (caught.value.reason, caught.value.retryable) == ("credentials", True)
