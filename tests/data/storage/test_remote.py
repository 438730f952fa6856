import copy
import hashlib
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import botocore.session
import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from tests.material.made_clips import sample, write_dataset
from tests.material.tasks.hasty_reader import HASTE, HastyReader
from videodiff.data.loader.datamodule import clip_data
from videodiff.data.samples.indexing import index_tars
from videodiff.data.samples.manifest import Manifest, ManifestError
from videodiff.data.samples.shards import read_sample
from videodiff.data.storage import remote
from videodiff.data.storage.cache import Cache
from videodiff.data.storage.remote import RemoteError, Url, path_or_url

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
    log_format bytes '$request_uri $body_bytes_sent'; access_log {folder}/log bytes;
    server {{
        listen 127.0.0.1:{port}; root {files};
        location /denied {{ return 403; }}
        location /untagged/ {{ alias {files}/; etag off; }}
        location /busy {{ return 503; }}
        location /slow {{ alias {files}; limit_rate 40k; }}
    }}
}}
"""
READER = """
import sys
from pathlib import Path
from videodiff.data.storage.cache import Cache
from videodiff.data.storage.remote import Url
for argument in sys.argv[2:]:
    url, size, sha256 = argument.split(",")
    assert len(Cache(sys.argv[1], 1.0).open(Url(url), int(size), sha256).read()) == int(size)
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen) -> None:
    for _ in range(600):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the server ended"
        time.sleep(0.1)
    raise TimeoutError("no server")


class Nginx:
    """A real server of a folder, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.files, self.log, port = folder / "files", folder / "log", free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.files.mkdir()
        (folder / "conf").write_text(NGINX.format(folder=folder, files=self.files, port=port))
        self.process = subprocess.Popen(["nginx", "-c", str(folder / "conf"), "-p", str(folder), "-e", "stderr"])
        wait_for(port, self.process)

    def sent(self, name: str) -> int:
        """Return how many bytes of a file were sent."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return sum(int(size) for path, size in lines if path.endswith(name))


@pytest.fixture
def nginx(tmp_path):
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx (Debian: nginx-light)")
    (tmp_path / "nginx").mkdir()
    server = Nginx(tmp_path / "nginx")
    yield server
    server.process.terminate()
    server.process.wait()


@pytest.fixture
def s3(monkeypatch):
    """Return a client of a moto server that the environment points at."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    wait_for(port, server)
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key",
                        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
                        "AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nowhere"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    remote.s3_client.cache_clear()
    client = botocore.session.get_session().create_client("s3")
    client.create_bucket(Bucket="set")
    yield client
    remote.s3_client.cache_clear()
    server.terminate()
    server.wait()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 0.01)


def content(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_256(bytes([seed])).digest(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Faulty(http.server.BaseHTTPRequestHandler):
    """A server of ranges that first answers as `faults` say: a status, or after how many bytes it hangs up."""

    data, faults, protocol_version = content(10_000), [], "HTTP/1.1"

    def do_GET(self) -> None:
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, str):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, stop = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = self.data[start : stop + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(self.data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[:fault])
        self.close_connection = fault is not None

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def faulty():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Url(f"http://127.0.0.1:{server.server_port}/file")
    Faulty.faults = []
    server.shutdown()
    server.server_close()


def test_a_url_is_read_by_ranges_like_a_file(nginx, monkeypatch):
    monkeypatch.setattr(remote, "PIECE", 1000)
    data = content(10_500)
    (nginx.files / "a.tar").write_bytes(data)
    url = path_or_url(nginx.url) / "a.tar"
    assert b"".join(url.pieces()) == data
    assert copy.deepcopy(url) == url
    with url.open() as file:
        assert file.seek(-500, os.SEEK_END) == 10_000
        assert file.read() == data[-500:]
        file.seek(77)
        assert (file.read(3000), file.tell()) == (data[77:3077], 3077)


@pytest.mark.parametrize("faults", [["503"], ["429", "500", "502"], [0], [4000, 9999, 1]])
def test_what_fails_is_asked_again(faulty, faults):
    Faulty.faults = list(faults)
    assert b"".join(faulty.pieces()) == Faulty.data
    assert Faulty.faults == []


def test_waits_grow_and_differ(faulty, monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    Faulty.faults = ["503"] * 6
    with pytest.raises(RemoteError, match="file: found no answer in 6 attempts: status 503"):
        remote.fetch(faulty, 0, 10)
    assert all(0 <= wait / (remote.WAIT * 2**i) <= 2 for i, wait in enumerate(waits))
    assert len({wait / 2**i for i, wait in enumerate(waits)}) == 5
    monkeypatch.setattr("tenacity.wait.random.uniform", lambda least, most: most)
    waits.clear()
    Faulty.faults = ["503"] * 6
    with pytest.raises(RemoteError):
        remote.fetch(faulty, 0, 10)
    assert waits == pytest.approx([2 * remote.WAIT * 2**i for i in range(5)])


def test_an_unreachable_host_is_one_clear_line():
    with pytest.raises(RemoteError, match=r"set/manifest\.parquet: found no answer in 6 attempts: .*refused") as error:
        Manifest.load(f"http://127.0.0.1:{free_port()}/set")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("path", "message"), [("nowhere", "found no such file"), ("denied", "403, .*netrc")])
def test_what_will_not_come_is_one_clear_line_at_once(nginx, path, message):
    with pytest.raises(RemoteError, match=message):
        remote.fetch(Url(f"{nginx.url}/{path}"), 0, 10)
    # It notes a request after it has answered.
    time.sleep(0.2)
    assert len(nginx.log.read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["ftp://host/a", "http:///a", "https://user:secret@host/a"])
def test_what_is_no_url_that_can_be_read_is_an_error_without_its_password(name):
    with pytest.raises(ValueError, match="url: found") as error:
        path_or_url(name)
    assert "secret" not in str(error.value)


def test_a_dataset_at_a_url_is_read_like_one_on_disk(nginx, tmp_path):
    root = write_dataset(nginx.files / "set")
    local, cache = Manifest.load(root), Cache(tmp_path / "cache", 1.0)
    for manifest in (Manifest.load(f"{nginx.url}/set"), Manifest.load(f"{nginx.url}/set", cache)):
        again = copy.deepcopy(manifest)
        assert (len(again), again.fingerprint, again.counts.tolist()) == (6, local.fingerprint, local.counts.tolist())
        for index in range(6):
            assert read_sample(again.root, again.row(index)) == read_sample(root, local.row(index))
    assert names(tmp_path / "cache") == {shard["sha256"] for shard in local.shards}


def test_a_sample_without_cache_costs_its_own_bytes_only(nginx, monkeypatch):
    monkeypatch.setattr(remote, "BUFFER", 1024)
    write_dataset(nginx.files, count=20, shard_bytes=10**7)
    manifest = Manifest.load(nginx.url)
    row = manifest.row(3)
    assert read_sample(manifest.root, row) == sample(3)[0]
    assert nginx.sent("shard-00000.tar") < row["size"] + 5000 < manifest.shards[0]["bytes"] / 5


def test_tars_at_a_url_are_indexed_in_place(nginx, tmp_path):
    root = write_dataset(nginx.files / "set")
    local = Manifest.load(root)
    last = len(local.shards) - 1
    manifest, unusable = index_tars(f"{nginx.url}/set/shard-{{00000..{last:05}}}.tar", tmp_path / "out", workers=1)
    assert (unusable, manifest.fingerprint) == ([], local.fingerprint)
    cached = Manifest.load(tmp_path / "out", Cache(tmp_path / "cache", 1.0))
    assert read_sample(cached.root, cached.row(5)) == read_sample(root, local.row(5))


def test_a_shard_is_fetched_and_verified_once(nginx, tmp_path):
    data = content(50_000)
    (nginx.files / "a.tar").write_bytes(data)
    cache, url = Cache(tmp_path / "cache", 1.0), Url(f"{nginx.url}/a.tar")
    for _ in range(3):
        assert cache.open(url, len(data), sha256(data)).read() == data
    assert nginx.sent("a.tar") == len(data)


def test_a_tar_replaced_under_a_running_job_is_an_error(nginx, tmp_path):
    write_dataset(nginx.files)
    manifest = Manifest.load(nginx.url, Cache(tmp_path / "cache", 1.0))
    first, row = read_sample(manifest.root, manifest.row(0)), manifest.row(5)
    for shard in manifest.shards:
        path = nginx.files / shard["name"]
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert read_sample(manifest.root, manifest.row(0)) == first
    with pytest.raises(RemoteError, match=rf"{row['shard']}: found \d+ bytes with sha256 .* replaced"):
        read_sample(manifest.root, row)
    assert names(tmp_path / "cache") == {manifest.shards[0]["sha256"]}


def test_a_manifest_replaced_under_a_running_job_is_an_error(nginx, monkeypatch):
    monkeypatch.setattr(remote, "PIECE", 1000)
    path = nginx.files / "a.tar"
    path.write_bytes(content(3000))
    pieces = Url(f"{nginx.url}/a.tar").pieces()
    next(pieces)
    path.write_bytes(content(3001, seed=1))
    with pytest.raises(RemoteError, match=r"found version .* replaced while it was read"):
        next(pieces)


def test_a_file_replaced_by_one_of_its_size_is_noticed_where_a_server_gives_no_etag(nginx, monkeypatch):
    monkeypatch.setattr(remote, "PIECE", 1000)
    path = nginx.files / "a.tar"
    path.write_bytes(content(3000))
    os.utime(path, (1_000_000_000, 1_000_000_000))
    pieces = Url(f"{nginx.url}/untagged/a.tar").pieces()
    next(pieces)
    path.write_bytes(content(3000, seed=1))
    was = "Sun, 09 Sep 2001 01:46:40 GMT"
    with pytest.raises(RemoteError, match=f"found version .* GMT, expected {was}: the file was replaced"):
        next(pieces)


def test_a_file_replaced_by_one_of_another_size_is_noticed_where_a_server_says_nothing_of_it(faulty, monkeypatch):
    monkeypatch.setattr(remote, "PIECE", 1000)
    pieces = faulty.pieces()
    next(pieces)
    monkeypatch.setattr(Faulty, "data", content(10_001, seed=1))
    with pytest.raises(RemoteError, match="found version 10001 bytes, expected 10000 bytes: the file was replaced"):
        next(pieces)


def test_a_manifest_that_does_not_fit_its_remote_tar_is_an_error(nginx):
    manifest = Manifest.load(write_dataset(nginx.files, shard_bytes=10**6))
    row = {**manifest.row(1), "offset": manifest.row(2)["offset"]}
    with pytest.raises(ManifestError, match=r"shard-00000\.tar: clip1: expected .* found 'clip2\.mp4'"):
        read_sample(nginx.url, row)


def test_the_longest_unused_shard_leaves_and_what_is_open_stays_readable(nginx, tmp_path):
    files = [content(40_000, seed) for seed in range(3)]
    for i, data in enumerate(files):
        (nginx.files / f"{i}.tar").write_bytes(data)
    cache = Cache(tmp_path / "cache", 100_000 / 2**30)
    (tmp_path / "cache/notes.txt").write_bytes(b"n" * 90_000)

    def read(i):
        time.sleep(0.01)
        return cache.open(Url(f"{nginx.url}/{i}.tar"), 40_000, sha256(files[i]))

    opened = [read(0), read(1)]
    read(0)
    read(2)
    assert names(tmp_path / "cache") == {sha256(files[0]), sha256(files[2]), "notes.txt"}
    assert opened[1].read() == files[1]
    with pytest.raises(ValueError, match=r"found a cache of .* expected room"):
        cache.open(Url(f"{nginx.url}/0.tar"), 200_000, "0" * 64)


def test_processes_share_a_cache_and_each_shard_is_fetched_once(nginx, tmp_path):
    arguments = []
    for seed in range(3):
        data = content(40_000, seed)
        (nginx.files / f"{seed}.tar").write_bytes(data)
        arguments.append(f"{nginx.url}/slow/{seed}.tar,40000,{sha256(data)}")
    command = [sys.executable, "-c", READER, str(tmp_path / "cache")]
    readers = [subprocess.Popen([*command, *arguments[i:], *arguments[:i]]) for i in range(3)]
    assert [reader.wait(120) for reader in readers] == [0, 0, 0]
    assert [nginx.sent(f"{seed}.tar") for seed in range(3)] == [40_000] * 3
    assert len(names(tmp_path / "cache")) == 3


def test_a_process_killed_while_it_fetches_leaves_no_lock_and_no_half_shard(nginx, tmp_path):
    data, folder = content(400_000), tmp_path / "cache"
    (nginx.files / "a.tar").write_bytes(data)
    name = sha256(data)
    arguments = [str(folder), f"{nginx.url}/slow/a.tar,400000,{name}"]
    reader = subprocess.Popen([sys.executable, "-c", READER, *arguments])
    partial = folder / f"{name}.partial"
    while not (partial.exists() and partial.stat().st_size == 400_000):
        assert reader.poll() is None
        time.sleep(0.01)
    reader.send_signal(signal.SIGKILL)
    reader.wait()
    assert names(folder) == {partial.name}
    # Its place is free for others ...
    other = content(300_000, 1)
    (nginx.files / "b.tar").write_bytes(other)
    cache = Cache(folder, 400_000 / 2**30)
    cache.open(Url(f"{nginx.url}/b.tar"), 300_000, sha256(other))
    assert names(folder) == {sha256(other)}
    # ... and the shard can be fetched again.
    assert cache.open(Url(f"{nginx.url}/a.tar"), 400_000, name).read() == data
    assert names(folder) == {name}


def test_shards_are_prefetched_and_errors_come_to_the_reader(nginx, tmp_path):
    write_dataset(nginx.files, count=12)
    manifest = Manifest.load(nginx.url, Cache(tmp_path / "cache", 1.0))
    ahead = [shard["name"] for shard in manifest.shards]
    (nginx.files / ahead[-1]).unlink()
    for thread in manifest.root.prefetch(ahead, threads=2):
        thread.join(60)
    assert names(tmp_path / "cache") == {shard["sha256"] for shard in manifest.shards[:-1]}
    before = nginx.log.read_text()
    assert read_sample(manifest.root, manifest.row(0)) == sample(0)[0]
    assert nginx.log.read_text() == before
    with pytest.raises(RemoteError, match="found no such file"):
        read_sample(manifest.root, manifest.row(11))


def test_a_dataset_in_s3_is_read_like_one_on_disk(s3, tmp_path):
    root = write_dataset(tmp_path / "set")
    for path in root.iterdir():
        s3.put_object(Bucket="set", Key=f"a/{path.name}", Body=path.read_bytes())
    local, manifest = Manifest.load(root), Manifest.load("s3://set/a", Cache(tmp_path / "cache", 1.0))
    assert manifest.fingerprint == local.fingerprint
    for number in (0, 5):
        assert read_sample(manifest.root, manifest.row(number)) == sample(number)[0]
        assert read_sample("s3://set/a", manifest.row(number)) == sample(number)[0]
    with pytest.raises(RemoteError, match=r"a/none: found no such file"):
        remote.fetch(Url("s3://set/a/none"), 0, 10)


def test_missing_credentials_are_one_clear_line(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RemoteError, match=r"s3://set/manifest\.parquet: .* set AWS_ACCESS_KEY_ID") as error:
        Manifest.load("s3://set")
    assert "\n" not in str(error.value)


def module(root, **how):
    return clip_data(root=str(root), **{"frames": 4, "height": 16, "width": 16, "global_batch": 3, **how})


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataset_at_a_url_trains_like_one_on_disk(nginx, tmp_path, num_workers):
    root = write_dataset(nginx.files / "set", count=9)
    expected = list(islice(module(root, window=1).train_dataloader(), 4))
    data = module(f"{nginx.url}/set", window=1, disk_cache=str(tmp_path / "cache"), num_workers=num_workers)
    for batch, local in zip(islice(data.train_dataloader(), 4), expected, strict=True):
        assert torch.equal(batch["video"], local["video"])
    data.teardown("fit")


def test_a_slow_host_is_no_fault_of_the_clips_that_wait_for_their_shard(nginx, tmp_path):
    """The shard takes longer than a clip may take to be read."""
    write_dataset(nginx.files / "set", count=30, shard_bytes=2**20)
    how = {"num_workers": 1, "timeout": 1.0, "budget": 0, "validation_root": f"{nginx.url}/slow/set"}
    data = module(f"{nginx.url}/slow/set", disk_cache=str(tmp_path / "cache"), **how)
    size = data.manifests[0].shards[0]["bytes"]
    assert size > 100_000
    assert len(data.validation_batches[0]["caption"]) == 3
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    assert len(next(iter(data.train_dataloader()))["caption"]) == 3
    data.teardown("fit")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_host_that_hangs_ends_the_run_and_costs_no_clip(nginx, tmp_path, monkeypatch, cached, comes_back):
    """A stopped server accepts connections and sends nothing; its clips wait as long as a host may take."""
    write_dataset(nginx.files / "set", count=9)
    if not comes_back:
        monkeypatch.setattr("videodiff.data.loader.datamodule.Reader", HastyReader)
        # The threads of this process fetch for the disk cache too; readers wait for a shard that one of them fetches.
        for name, value in HASTE.items():
            monkeypatch.setattr(remote, name, value)
    cache = {"disk_cache": str(tmp_path / "cache")} if cached else {}
    how = {"num_workers": 2, "timeout": 1.0, "budget": 0, "quarantine": str(tmp_path / "quarantine.jsonl")}
    data = module(f"{nginx.url}/set", **how, **cache)
    data.check()
    nginx.process.send_signal(signal.SIGSTOP)
    wake = threading.Timer(4.0, nginx.process.send_signal, [signal.SIGCONT])
    wake.start() if comes_back else None
    try:
        if comes_back:
            assert len(next(iter(data.train_dataloader()))["caption"]) == 3
        else:
            with pytest.raises(RemoteError, match="found no answer in 2 attempts"):
                next(iter(data.train_dataloader()))
        assert not (tmp_path / "quarantine.jsonl").exists()
    finally:
        nginx.process.send_signal(signal.SIGCONT)
        wake.cancel()
        data.teardown("fit")


def test_the_shards_of_the_next_window_are_fetched_while_this_one_is_read(nginx, tmp_path):
    write_dataset(nginx.files / "set", count=18, shard_bytes=1)
    data = module(f"{nginx.url}/set", window=3, disk_cache=str(tmp_path / "cache"))
    loader, shards = data.train_dataloader(), data.training[0].manifest.shards
    loader.tasks(loader.batch_sampler.batch(0, 0))
    # A batch is a window here: this one, that of the next step, where it ends, and the one after.
    line = data.order.stages[0].streams[0].epoch(0)[0]
    soon = {shards[shard]["sha256"] for shard in line[:12]}
    until = time.monotonic() + 20
    while names(tmp_path / "cache") != soon and time.monotonic() < until:
        time.sleep(0.01)
    assert names(tmp_path / "cache") == soon


def test_a_cache_without_room_for_what_is_read_at_once_is_an_error_that_says_what_would_do(nginx, tmp_path):
    write_dataset(nginx.files / "set", count=9)
    data = module(f"{nginx.url}/set", disk_cache=str(tmp_path / "cache"), disk_cache_gib=1e-5)
    with pytest.raises(ValueError, match=r"found 1e-05, expected at least \S+e-05 for 3 shards of http"):
        data.check()


class Bucket(MemoryFileSystem):
    """A store that fsspec knows, as a bucket would be: a version for each file, and what `faults` raise first."""

    protocol, faults, versions, cachable = "gs", [], {}, False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))

    def info(self, path, **more):
        if self.faults:
            raise self.faults.pop(0)
        found = super().info(path, **more)
        return found | {"generation": self.versions.get(found["name"], 1)}


@pytest.fixture
def bucket(monkeypatch):
    """Return the store behind gs://, here in memory: no bucket can be reached from where tests run."""
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gs", Bucket)
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "faults", [])
    monkeypatch.setattr(Bucket, "versions", {})
    return fsspec.filesystem("gs")


def test_a_dataset_in_a_store_of_fsspec_is_read_by_ranges(bucket, tmp_path):
    local = write_dataset(tmp_path / "set")
    for path in local.iterdir():
        bucket.pipe(f"gs://set/{path.name}", path.read_bytes())
    there, here = Manifest.load("gs://set"), Manifest.load(local)
    for number in range(len(here)):
        assert read_sample(there.root, there.row(number)) == read_sample(here.root, here.row(number))
    cached = Manifest.load("gs://set", Cache(tmp_path / "cache", 1.0))
    assert read_sample(cached.root, cached.row(5)) == read_sample(here.root, here.row(5))


def test_a_store_that_stumbles_is_asked_again_and_a_file_that_changes_is_noticed(bucket):
    bucket.pipe("gs://set/a#1", content(10_000))
    bucket.faults[:] = [OSError("reset"), TimeoutError("late")]
    with Url("gs://set/a#1").open() as file:
        file.seek(9_000)
        assert file.read() == content(10_000)[9_000:]
        bucket.pipe("gs://set/a#1", content(10_000, 1))
        bucket.versions["/set/a#1"] = 2
        file.seek(0)
        with pytest.raises(RemoteError, match="found version 2, expected 1: the file was replaced"):
            file.read(10)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (FileNotFoundError(), "gs://set/a: found no such file"),
        (PermissionError(), "found no permission to read it: set GOOGLE_APPLICATION_CREDENTIALS"),
        (ImportError("Please install gcsfs"), "Please install gcsfs: fsspec needs it to read gs://"),
    ],
)
def test_what_a_store_will_never_give_is_one_line_at_once(bucket, fault, found):
    bucket.faults[:] = [fault]
    with pytest.raises(RemoteError, match=found):
        Url("gs://set/a").open()
    assert not bucket.faults
