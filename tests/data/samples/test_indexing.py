import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset

from data_prep.books.request import BadInput
from data_prep.sources.webdataset import read_webdataset
from tests.material.made_clips import sample, write_dataset
from tests.material.tasks.crashing_description import crash
from videodiff.data.samples import indexing, members
from videodiff.data.samples.indexing import index_tars
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import read_captions, read_sample, video_of
from videodiff.data.storage.listing import Passed
from videodiff.data.tars.source import Fault, read_tars
from videodiff.data.video.decode import decode

MP4 = sample(0)[0]["mp4"]


def encoded(container: str, codec: str, frames: int = 3, pixels: str = "yuv420p") -> bytes:
    """Return a video of another kind than the project writes itself."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, pixels
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 60 * number % 256, np.uint8))
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def write_tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def reasons(unusable: list[indexing.Unusable]) -> dict[str, str]:
    return {entry.name: entry.reason for entry in unusable}


def test_tars_of_webdataset_become_a_dataset(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "000000", "mp4": MP4, "txt": "a red square", "json": {"url": "http://x/1", "n": 1}})
        tar.write({"__key__": "000001", "webm": encoded("webm", "libvpx-vp9"), "json": {"caption": "in json"}})
        tar.write({"__key__": "000002", "mkv": encoded("matroska", "mpeg4"), "txt": "a", "npy": np.zeros(4)})
    with webdataset.TarWriter(str(tmp_path / "b.tar")) as tar:
        tar.write({"__key__": "x/000003", "jpg": encoded("image2pipe", "mjpeg", 1, "yuvj420p"), "txt": "an image"})
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    assert unusable == []
    assert [(row["shard"], row["key"], row["frames"]) for row in map(manifest.row, range(4))] == [
        ("a.tar", "000000", 8), ("a.tar", "000001", 3), ("a.tar", "000002", 3), ("b.tar", "x/000003", 1)
    ]  # fmt: skip
    members = [read_sample(manifest.root, manifest.row(index)) for index in range(4)]
    assert [video_of(each) for each in members] == ["mp4", "webm", "mkv", "jpg"]
    assert [read_captions(each) for each in members] == [["a red square"], ["in json"], ["a"], ["an image"]]
    assert all(decode(each[video_of(each)], [0]).shape[0] == 1 for each in members)
    assert manifest.row(0)["source"] == "http://x/1"
    assert (tmp_path / "words.txt").read_text().split()[0] == "a"


def test_an_index_says_of_our_own_shards_what_their_writer_said(tmp_path):
    root = write_dataset(tmp_path / "set")
    written = Manifest.load(root)
    rows, fingerprint = [written.row(index) for index in range(6)], written.fingerprint
    (root / "manifest.parquet").unlink()
    indexed, _ = index_tars(str(root / "*.tar"), workers=2)
    assert [indexed.row(index) for index in range(6)] == rows
    assert (indexed.fingerprint, indexed.shards) == (fingerprint, written.shards)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("/etc/a.mp4", "leads out"), ("../a.mp4", "leads out"), ("b/../../a.mp4", "leads out"), ("a", "no key"),
     (".mp4", "no key"), ("a.txt", "expected one of mp4"), ("good.mp4", "again, expected each name once")],
)  # fmt: skip
def test_a_member_that_cannot_be_used_is_listed(tmp_path, name, reason):
    write_tar(tmp_path / "set/a.tar", ("good.mp4", MP4), (name, MP4 if name.endswith("mp4") else b"text"))
    manifest, unusable = index_tars(str(tmp_path / "set"), workers=1)
    assert manifest.row(0)["key"] == "good"
    assert len(manifest) == len(unusable) == 1
    assert reason in unusable[0].reason
    assert json.loads((tmp_path / "set/unusable.jsonl").read_text())["reason"] == unusable[0].reason
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_links_are_neither_followed_nor_used(tmp_path):
    link = tarfile.TarInfo("a.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_tar(tmp_path / "a.tar", ("a.mp4", MP4), link, ("b.mp4", MP4))
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    assert [manifest.row(index)["key"] for index in range(2)] == ["a", "b"]
    assert "a link" in reasons(unusable)["a.txt"]
    assert read_sample(manifest.root, manifest.row(0)) == {"mp4": MP4}


def test_what_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "TEXT_LIMIT", 10)
    write_tar(tmp_path / "a.tar", ("a.mp4", MP4), ("b.json", b" " * 11), ("b.mp4", MP4))
    _, unusable = index_tars(str(tmp_path), workers=1)
    assert reasons(unusable) == {"b.json": "found 11 bytes, expected at most 10"}


def test_a_header_that_claims_much_memory_ends_the_tar(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "HEADER_LIMIT", 100)
    write_tar(tmp_path / "a.tar", ("a.mp4", MP4), ("b.mp4", MP4), (f"{'n' * 200}.mp4", MP4))
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    assert len(manifest) == 1
    assert unusable[0].offset == manifest.row(0)["size"]
    assert "found a header of" in unusable[0].reason


def blocks(kind: bytes, content: bytes, size: int | None = None, name: str = "b.mp4") -> bytes:
    """Return a header of a kind with its content, as a tar has them; `size`: what the header claims."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


@pytest.mark.parametrize("kind", [b"x", b"g", b"X", b"L", b"K"])
def test_extensions_of_a_header_without_end_cost_the_rest_of_their_tar(tmp_path, kind):
    """Python's reader calls itself for each of them, and reads each whole into memory."""
    good, last = blocks(b"0", MP4, name="a.mp4"), blocks(b"0", MP4)
    chain, large = 1000 * blocks(kind, b"11 path=ab\n"), blocks(kind, b"", 2**32)
    for name, bad in (("a", chain), ("b", large)):
        # Whether the sample before the damage is whole cannot be told.
        (tmp_path / f"{name}.tar").write_bytes(good + last + bad + last + bytes(1024))
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    assert manifest.column("key").tolist() == ["a", "a"]
    assert [entry.offset for entry in unusable] == [len(good)] * 2
    found = [entry.reason.partition(": ")[2] for entry in unusable]
    assert found == [
        "found over 16 headers for one member, expected fewer",
        f"found a header of {2**32} bytes, expected at most {2**20}",
    ]


@pytest.mark.parametrize("size", [-512, -1, 2**63 - 1, 2**80])
def test_a_size_that_no_file_has_ends_its_tar_for_every_reader(tmp_path, size):
    good, last = blocks(b"0", MP4, name="a.mp4"), blocks(b"0", MP4, name="c.mp4")
    (tmp_path / "a.tar").write_bytes(good + last + blocks(b"0", b"", size) + last + bytes(1024))
    found = f"found a file of {size} bytes, expected 0 to {2**36}"
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    assert manifest.column("key").tolist() == ["a"]
    assert found in unusable[0].reason
    assert found in next(item.detail for item in read_webdataset(tmp_path) if isinstance(item, BadInput))
    faults = (item.reason for item in read_tars([str(tmp_path / "a.tar")], [0]) if isinstance(item, Fault))
    assert found in next(faults)


def test_sparse_files_cost_only_themselves(tmp_path):
    sparse = [blocks(tarfile.GNUTYPE_SPARSE, bytes(2**20 + 512), name=f"s{number}.mp4") for number in range(20)]
    data = blocks(b"0", MP4, name="a.mp4") + b"".join(sparse) + blocks(b"0", MP4)
    (tmp_path / "a.tar").write_bytes(data + bytes(1024))
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    assert manifest.column("key").tolist() == ["a", "b"]
    assert {entry.reason for entry in unusable} == {"found a link, folder or special file, expected a plain one"}
    assert len(unusable) == 20


@pytest.mark.parametrize(("member", "content"), [("b.mp4", b"no video"), ("b.json", b"{"), ("b.json", b"[" * 100_000),
                                                  ("b.txt", b"\xff")])  # fmt: skip
def test_a_broken_sample_is_listed_and_the_others_are_used(tmp_path, member, content):
    files = {"b.mp4": MP4} | {member: content}
    write_tar(tmp_path / "a.tar", ("a.mp4", MP4), *files.items(), ("c.mp4", MP4))
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    assert [manifest.row(index)["key"] for index in range(2)] == ["a", "c"]
    assert [entry.name for entry in unusable] == ["b"]


def test_names_and_notes_that_are_no_unicode_do_not_end_the_index(tmp_path):
    strange = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    notes = b'{"url": "https://x/\\ud83d", "licence": "CC0"}'
    write_tar(tmp_path / "a.tar", ("a.mp4", MP4), (strange, MP4), ("b.mp4", MP4), ("b.json", notes))
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    assert [(manifest.row(n)["key"], manifest.row(n)["source"]) for n in range(2)] == [("a", ""), ("b", "https://x/?")]
    assert "not UTF-8" in unusable[0].reason


def test_a_number_in_a_header_that_is_none_ends_the_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers in (("a.mp4", {}), ("b.mp4", {}), ("c.mp4", {"GNU.sparse.map": "x"})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(MP4), headers
            tar.addfile(info, io.BytesIO(MP4))
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    assert len(manifest) == 1
    assert "cannot be read from here on" in unusable[0].reason


@pytest.mark.parametrize("tars", [1, 2])
def test_a_clip_that_crashes_or_hangs_the_decoder_costs_itself_alone(tmp_path, monkeypatch, tars):
    write_tar(tmp_path / "a.tar", *((f"{key}.mp4", MP4) for key in ("a", "crash", "b", "hang", "c")))
    if tars == 2:
        write_tar(tmp_path / "b.tar", ("d.mp4", MP4), ("crash.mp4", MP4))
    monkeypatch.setattr(indexing, "describe", crash)
    monkeypatch.setattr(indexing, "LIMIT_S", 3.0)
    manifest, unusable = index_tars(str(tmp_path), workers=2)
    keys = [manifest.row(n)["key"] for n in range(len(manifest))]
    assert keys == ["a", "b", "c", "d"][: 3 + tars - 1]
    told = [(one.shard, one.name, one.reason) for one in unusable]
    segfault = "crashed: the process ended by SIGSEGV"
    expected = [("a.tar", "crash", segfault), ("a.tar", "hang", "timeout: took longer than 3 s")]
    assert told == expected + [("b.tar", "crash", segfault)] * (tars - 1)


def test_an_error_that_no_clip_has_ends_the_index(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", ("a.mp4", MP4), ("raise.mp4", MP4))
    monkeypatch.setattr(indexing, "describe", crash)
    with pytest.raises(OSError, match="no room"):
        index_tars(str(tmp_path))


def test_the_secrets_of_a_source_do_not_get_into_the_manifest(tmp_path):
    """People share a manifest; a terminal shows what is in it."""
    notes = {"url": "https://me:word@host/a.mp4?v=1&X-Amz-Signature=abc", "license": "CC\x1b[31m\n0"}
    write_tar(tmp_path / "a.tar", ("a.mp4", MP4), ("a.json", json.dumps(notes).encode()))
    row = index_tars(str(tmp_path), workers=1)[0].row(0)
    assert (row["source"], row["licence"]) == ("https://host/a.mp4?v=1", "CC [31m 0")


def test_a_text_that_no_manifest_holds_costs_no_other_sample(tmp_path):
    """A manifest with such a text is refused as a whole."""
    write_tar(tmp_path / "a.tar", ("a.mp4", MP4), ("a.json", json.dumps({"licence": "ö" * 40_000}).encode()))
    write_tar(tmp_path / "b.tar", ("b.mp4", MP4), ("k" * 70_000 + ".mp4", MP4))
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    licence = manifest.row(0)["licence"]
    assert licence.startswith("ööö")
    assert licence.endswith("ö...")
    assert 4090 < len(licence.encode()) <= 4096
    assert manifest.row(1)["key"] == "b"
    assert [entry.reason for entry in unusable] == ["found a name of 70004 bytes, expected at most 4096"]
    assert len(str(unusable[0])) < 400


@pytest.mark.parametrize("damage", ["truncated", "header", "between"])
def test_a_damaged_tar_is_used_up_to_the_damage_and_the_rest_is_listed(tmp_path, damage):
    path = write_tar(tmp_path / "a.tar", ("a.mp4", MP4), ("b.mp4", MP4), ("c.mp4", MP4))
    data, second = bytearray(path.read_bytes()), 512 + -(-len(MP4) // 512) * 512
    if damage == "truncated":
        data = data[: second + 1000]
    else:
        data[second + (150 if damage == "header" else 0)] ^= 0xFF
    path.write_bytes(data)
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    assert len(manifest) == 1
    assert [entry.offset for entry in unusable] == [second]


def test_an_unsorted_tar_is_refused_with_what_to_do(tmp_path, call):
    clips = [(f"{key}.mp4", MP4) for key in "abc"]
    write_tar(tmp_path / "bad/b.tar", *clips, *((f"{key}.txt", b"a caption") for key in "abc"))
    with pytest.raises(ValueError, match=r"no usable sample.*b\.tar at 0: a: found its members apart.*--sort=name"):
        index_tars(str(tmp_path / "bad"), workers=1)
    # One key that is apart costs itself.
    write_tar(tmp_path / "mix/b.tar", *clips[:2], ("b.txt", b"two"), ("a.txt", b"one"), clips[2], ("c.txt", b"three"))
    manifest, unusable = index_tars(str(tmp_path / "mix"), workers=1)
    rows = [manifest.row(index) for index in range(len(manifest))]
    assert [(row["key"], row["captions"]) for row in rows] == [("b", 1), ("c", 1)]
    assert [entry.name for entry in unusable] == ["a"]
    assert (tmp_path / "mix/words.txt").read_text().split() == ["three", "two"]


@pytest.mark.parametrize("between", [[], [("m.mp4", MP4), ("m.txt", b"between")]])
def test_of_members_of_one_name_the_first_is_used_and_the_others_are_listed(tmp_path, between):
    other = sample(1)[0]["mp4"]
    twice = [("a.mp4", MP4), ("a.txt", b"one"), *between, ("a.mp4", other), ("a.txt", b"two")]
    write_tar(tmp_path / "a.tar", *twice, ("b.mp4", MP4), ("b.txt", b"x"), ("b.txt", b"later"))
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    rows = [manifest.row(index) for index in range(len(manifest))]
    found = {row["key"]: read_sample(manifest.root, row) for row in rows}
    assert found.keys() == {"a", "b", *(["m"] if between else [])}
    assert found["a"] == {"mp4": MP4, "txt": b"one"}
    assert read_captions(found["b"]) == ["x"]
    assert [(entry.name, entry.reason.partition(",")[0]) for entry in unusable] == [
        ("a", "found a.mp4 and a.txt again"),
        ("b", "found b.txt again"),
    ]


def test_a_tar_as_others_make_them_is_indexed_and_read(tmp_path):
    noise = [("./._a.mp4", b"macOS"), ("./._a.txt", b"macOS"), ("./.DS_Store", b"x")]
    folder = tarfile.TarInfo("./x")
    folder.type = tarfile.DIRTYPE
    members = [folder, noise[0], ("./a.mp4", MP4), noise[1], ("./a.txt", b"one"), noise[2]]
    members += [("x/b.MP4", MP4), ("x/b.TXT", b"two"), ("c.mp4", MP4), ("c.jpg", b"preview"), ("d.mp4", MP4)]
    members += [("d.webm", MP4), ("e.csv", b"text\rthree\r"), ("e.ts", encoded("mpegts", "mpeg2video", 9))]
    members += [("f.gif", encoded("gif", "gif", 3, "rgb8")), (f"{'n' * 150}.mp4", MP4), (f"{'n' * 150}.txt", b"long")]
    write_tar(tmp_path / "A.TAR", *members)
    for name in ("b.tar.gz", "notes.md", "sub/c.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    passed = Passed()
    manifest, unusable = index_tars(str(tmp_path), workers=1, passed=passed)
    rows = [manifest.row(index) for index in range(len(manifest))]
    found = {row["key"]: read_captions(read_sample(manifest.root, row)) for row in rows}
    assert found == {"./a": ["one"], "x/b": ["two"], "c": [], "e": ["three"], "f": [], "n" * 150: ["long"]}
    assert {row["key"]: row["frames"] for row in rows}["f"] == 3
    assert reasons(unusable) == {"d": "found mp4 and webm, expected one video in a sample"}
    assert passed == {"hidden in a tar": 3, ".tar.gz": 1, ".md": 1, "folder": 1}


def test_every_tar_that_is_asked_for_must_be_there(tmp_path):
    for number in (0, 2):
        write_tar(tmp_path / f"{number}.tar", ("a.mp4", MP4))
    with pytest.raises(FileNotFoundError, match=r"found none at .*/1\.tar and 1 more"):
        index_tars(str(tmp_path / "{0..3}.tar"), workers=1)
    with pytest.raises(FileNotFoundError, match=r"found none at .*/x\.tar, expected"):
        index_tars([str(tmp_path / "?.tar"), str(tmp_path / "x.tar")], workers=1)
    (tmp_path / "[raw],{a}").mkdir()
    write_tar(tmp_path / "[raw],{a}" / "a[1].tar", ("a.mp4", MP4))
    assert len(index_tars(str(tmp_path / "[raw],{a}" / "a[1].tar"), workers=1)[0]) == 1


@pytest.mark.parametrize("pattern", ["", "/*.tar"])
def test_a_tar_that_cannot_be_read_costs_itself(tmp_path, pattern, monkeypatch):
    for name in ("a", "locked"):
        write_tar(tmp_path / f"{name}.tar", (f"{name}.mp4", MP4))
    (tmp_path / "gone.tar").symlink_to("nowhere")
    real = os.access
    monkeypatch.setattr(indexing.os, "access", lambda path, mode: "locked" not in str(path) and real(path, mode))
    manifest, unusable = index_tars(f"{tmp_path}{pattern}", workers=1)
    assert [manifest.row(index)["key"] for index in range(len(manifest))] == ["a"]
    found = {entry.shard: entry.reason for entry in unusable}
    assert found.keys() == {"gone.tar", "locked.tar"}
    assert "which does not exist" in found["gone.tar"]
    assert "Permission denied" in found["locked.tar"]


def test_compressed_tars_are_told_what_to_do(tmp_path):
    path = write_tar(tmp_path / "in/a.tar", ("a.mp4", MP4))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match="found a tar compressed by gzip, expected a plain one: uncompress it"):
        index_tars(str(tmp_path / "in"), workers=1)
    path.rename(path.with_suffix(".tgz"))
    with pytest.raises(FileNotFoundError, match=r"there are \.tgz 1 \(unpack it first\)"):
        index_tars(str(tmp_path / "in"), workers=1)


def test_tars_without_anything_usable_are_an_error_and_leave_no_manifest(tmp_path):
    write_tar(tmp_path / "a.tar", ("a.txt", b"text"))
    with pytest.raises(ValueError, match="found no usable sample in 1 tar:"):
        index_tars(str(tmp_path), workers=1)
    assert not list(tmp_path.glob("*manifest*"))


def test_what_is_no_set_of_tars_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="tars: found none"):
        index_tars(str(tmp_path))
    write_tar(tmp_path / "a/a.tar", ("a.mp4", MP4))
    write_tar(tmp_path / "b/b.tar", ("a.mp4", MP4))
    with pytest.raises(ValueError, match="expected one folder and each tar once"):
        index_tars([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(ValueError, match="out: found None, expected a folder for tars at a URL"):
        index_tars("http://localhost/{0..3}.tar")


def test_a_manifest_is_not_overwritten(tmp_path):
    root = write_dataset(tmp_path)
    with pytest.raises(ValueError, match="found a manifest, expected none"):
        index_tars(str(root))


def test_the_verb_prints_what_there_is_and_what_could_not_be_used(tmp_path, call):
    write_tar(tmp_path / "a.tar", ("a.mp4", MP4), ("b.txt", b"text"))
    (tmp_path / "notes.md").touch()
    status, out, _ = call("index", str(tmp_path), "workers=1")
    assert status == 0
    assert "1 sample in 1 shard, 1 unusable" in out
    assert "1 clip has no caption" in out
    assert "passed over: .md 1" in out
    assert "b: found txt, expected one of mp4" in out
