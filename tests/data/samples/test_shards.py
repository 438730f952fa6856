import json
import os
import signal
import subprocess
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest
import webdataset

from tests.material.made_clips import sample, write_dataset
from videodiff.data.samples import shards as shards_module
from videodiff.data.samples.manifest import Manifest, ManifestError
from videodiff.data.samples.shards import ShardWriter, add_members, end_of, open_tar, read_sample

KILLED = """
import os, signal, sys
from tests.material.made_clips import sample
from videodiff.data.samples.shards import ShardWriter
with ShardWriter(sys.argv[1], shard_bytes=8_000) as writer:
    for number in range(10, 15):
        writer.add(f"new{number}", *sample(number))
    assert len(writer.shards) > 0
    os.kill(os.getpid(), signal.SIGKILL)
"""


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in sorted(root.iterdir())}


def test_webdataset_reads_the_shards_as_they_are(tmp_path):
    root = write_dataset(tmp_path)
    urls = [str(root / shard["name"]) for shard in Manifest.load(root).shards]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [item["__key__"] for item in found] == [f"clip{number}" for number in range(6)]
    for number, item in enumerate(found):
        members, _ = sample(number)
        assert {name: item[name] for name in members} == members


def test_a_sample_is_read_by_its_offset(tmp_path):
    manifest = Manifest.load(write_dataset(tmp_path))
    for number in (5, 0, 3):
        assert read_sample(tmp_path, manifest.row(number)) == sample(number)[0]


def test_only_the_files_asked_for_are_read(tmp_path):
    manifest = Manifest.load(write_dataset(tmp_path))
    assert read_sample(tmp_path, manifest.row(2), {"txt", "latent.npy"}) == {"txt": b"a red square number 2"}


def test_a_video_without_caption_and_json_is_a_sample(tmp_path):
    members, row = sample(0)
    with ShardWriter(tmp_path) as writer:
        writer.add("a", {"mp4": members["mp4"]}, row)
    assert read_sample(tmp_path, Manifest.load(tmp_path).row(0)) == {"mp4": members["mp4"]}


def test_rows_tile_their_shard(tmp_path):
    manifest = Manifest.load(write_dataset(tmp_path))
    rows = [manifest.row(i) for i in range(6)]
    for before, after in pairwise(rows):
        assert after["offset"] == (before["offset"] + before["size"] if after["shard"] == before["shard"] else 0)


def test_a_shard_stays_below_its_size_unless_one_sample_is_larger(tmp_path):
    write_dataset(tmp_path / "small", shard_bytes=20_480)
    write_dataset(tmp_path / "tiny", shard_bytes=1)
    assert all(shard["bytes"] <= 20_480 for shard in Manifest.load(tmp_path / "small").shards)
    assert [shard["samples"] for shard in Manifest.load(tmp_path / "tiny").shards] == [1] * 6


def test_the_same_samples_give_the_same_files(tmp_path):
    assert contents(write_dataset(tmp_path / "a")) == contents(write_dataset(tmp_path / "b"))


@pytest.mark.parametrize("key", ["clip", "k" * 120, "ein-langer-schlüssel-" * 8, "片" * 40])
def test_a_tar_is_to_the_byte_what_webdataset_writes(tmp_path, key):
    members = {"mp4": b"v" * 30_000, "txt": b"a caption", "json": b"{}", "text.000.npy": bytes(513)}
    quiet = {"user": "", "group": "", "mode": 0o444, "mtime": 0, "encoder": False, "compress": False}
    with (tmp_path / "wanted.tar").open("xb") as file, webdataset.TarWriter(file, **quiet) as wanted:
        # webdataset 1.0.2 has an argument for the format but ignores it.
        wanted.tarstream.format = tarfile.GNU_FORMAT
        # Within one record the library sorts.
        for extension, data in members.items():
            wanted.write({"__key__": key, extension: data})
        end = wanted.tarstream.offset
    with (tmp_path / "found.tar").open("xb") as file, open_tar(file) as found:
        add_members(found, key, members)
        assert end_of(found) == end
    assert (tmp_path / "found.tar").read_bytes() == (tmp_path / "wanted.tar").read_bytes()


def test_words_are_listed_by_how_often_they_come(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.add("a", *sample(0, captions=("A ball, a BALL!", "the ball")))
        writer.add("b", *sample(1, captions=("the a",)))
    assert (tmp_path / "words.txt").read_text().split("\n") == ["a", "ball", "the", ""]
    assert Manifest.load(tmp_path).column("captions").tolist() == [2, 1]


def test_a_sample_without_caption_counts_none(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.add("a", *sample(0, captions=()))
    assert Manifest.load(tmp_path).row(0)["captions"] == 0
    assert (tmp_path / "words.txt").read_text() == ""


def test_scores_are_further_columns(tmp_path):
    members, row = sample(0)
    with ShardWriter(tmp_path) as writer:
        writer.add("a", members, {**row, "score_motion": 0.5})
        writer.add("b", members, row)
    assert [Manifest.load(tmp_path).row(index)["score_motion"] for index in (0, 1)] == [0.5, None]


def test_truth_and_further_captions_travel_in_the_json(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.add("a", *sample(0, captions=("one", "two"), truth={"radius": [1.0]}))
    notes = json.loads(read_sample(tmp_path, Manifest.load(tmp_path).row(0))["json"])
    assert (notes["captions"], notes["truth"], notes["frames"]) == (["one", "two"], {"radius": [1.0]}, 8)


def test_a_writer_killed_in_the_middle_leaves_the_dataset_as_it_was(tmp_path):
    root = write_dataset(tmp_path / "set")
    before = contents(root)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(root)], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    after = contents(root)
    assert {name: after[name] for name in before} == before
    assert any(name.endswith(".partial") for name in after)
    assert len(Manifest.load(root)) == 6
    write_dataset(root, count=2)
    assert not any(name.endswith(".partial") for name in contents(root))


def test_an_error_in_the_middle_leaves_the_dataset_as_it_was_and_nothing_else(tmp_path):
    before = contents(write_dataset(tmp_path))

    def fail():
        with ShardWriter(tmp_path, shard_bytes=8_000) as writer:
            for number in range(10, 15):
                writer.add(f"new{number}", *sample(number))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert contents(tmp_path) == before


def test_a_writer_without_samples_is_an_error_and_leaves_the_dataset_as_it_was(tmp_path):
    before = contents(write_dataset(tmp_path))
    with pytest.raises(ValueError, match="found no samples to write"), ShardWriter(tmp_path):
        pass
    assert contents(tmp_path) == before


def test_a_new_dataset_replaces_a_larger_one_whole(tmp_path):
    write_dataset(tmp_path, count=6, shard_bytes=8_000)
    write_dataset(tmp_path, count=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["manifest.parquet", "shard-00000.tar", "words.txt"]
    assert len(Manifest.load(tmp_path)) == 2


def test_a_writer_that_dies_between_its_renames_leaves_no_dataset_rather_than_a_mixed_one(tmp_path, monkeypatch):
    write_dataset(tmp_path, shard_bytes=8_000)
    replace, done = os.replace, []

    def replace_one(old, new):
        done.append(new)
        if len(done) == 2:
            raise OSError("the machine lost power")
        replace(old, new)

    monkeypatch.setattr(shards_module.os, "replace", replace_one)
    with pytest.raises(OSError, match="lost power"):
        write_dataset(tmp_path, shard_bytes=8_000, first=3)
    with pytest.raises(FileNotFoundError, match="found no manifest"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "..", "a\nb", "a\\b", " a", "once"])
def test_a_key_that_webdataset_could_not_read_back_is_an_error(tmp_path, key):
    with ShardWriter(tmp_path) as writer:
        writer.add("once", *sample(0))
        with pytest.raises(ValueError, match="key: found"):
            writer.add(key, *sample(0))


@pytest.mark.parametrize("extension", ["", "../x", "MP4", "a..b", "a/b"])
def test_an_extension_that_webdataset_could_not_read_back_is_an_error(tmp_path, extension):
    members, row = sample(0)
    with ShardWriter(tmp_path) as writer:
        writer.add("once", *sample(0))
        with pytest.raises(ValueError, match="found members"):
            writer.add("a", {**members, extension: b""}, row)


@pytest.mark.parametrize("change", [{"fps": None}, {"stars": 5}])
def test_a_row_without_what_is_needed_or_with_what_nobody_knows_is_an_error(tmp_path, change):
    members, row = sample(0)
    row = {name: value for name, value in {**row, **change}.items() if value is not None}
    with ShardWriter(tmp_path) as writer:
        writer.add("once", *sample(0))
        with pytest.raises(ValueError, match=f"a: found a row .*{next(iter(change))}"):
            writer.add("a", members, row)


@pytest.mark.parametrize("harm", ["bytes", "more", "gone"])
def test_a_shard_that_is_not_what_was_written_leaves_the_dataset_as_it_was(tmp_path, harm):
    before = contents(write_dataset(tmp_path))

    def harmed():
        with ShardWriter(tmp_path) as writer:
            # Of the last 10 KiB the library writes nothing yet.
            for number in range(4):
                writer.add(f"new{number}", *sample(number))
            (partial,) = tmp_path.glob(".shard-00000.tar.*.partial")
            if harm == "gone":
                partial.unlink()
                return
            with partial.open("r+b") as file:
                file.seek(600 if harm == "bytes" else 10**6)
                writer.groups[""].file.file.flush()
                file.write(b"somebody else's")

    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        harmed()
    assert harm == "gone" or "something else changed it, or the disk is damaged" in str(caught.value)
    assert contents(tmp_path) == before


def test_a_sample_that_is_lost_on_the_way_leaves_the_dataset_as_it_was(tmp_path):
    before = contents(write_dataset(tmp_path))

    def losing():
        with ShardWriter(tmp_path) as writer:
            writer.add("one", *sample(9))
            writer.add("two", *sample(8))
            writer.groups[""].rows.truncate(10)

    with pytest.raises(ValueError):  # noqa: PT011
        losing()
    assert contents(tmp_path) == before


def test_a_manifest_that_points_at_another_sample_is_an_error(tmp_path):
    manifest = Manifest.load(write_dataset(tmp_path, shard_bytes=10**6))
    row = {**manifest.row(1), "offset": manifest.row(2)["offset"]}
    with pytest.raises(ManifestError, match=r"shard-00000\.tar: clip1: expected .* found 'clip2\.mp4'"):
        read_sample(tmp_path, row)


@pytest.mark.parametrize("shift", [7, 512])
def test_a_manifest_that_points_between_samples_is_an_error(tmp_path, shift):
    manifest = Manifest.load(write_dataset(tmp_path, shard_bytes=10**6))
    row = {**manifest.row(1), "offset": manifest.row(1)["offset"] + shift}
    with pytest.raises(ManifestError, match="clip1: "):
        read_sample(tmp_path, row)


def test_a_link_in_a_tar_is_an_error_and_is_not_followed(tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        link = tarfile.TarInfo("a.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ManifestError, match="a: expected its files"):
        read_sample(tmp_path, {"shard": "evil.tar", "key": "a", "offset": 0, "size": 512})


def test_a_sparse_file_that_claims_much_memory_is_an_error(tmp_path):
    """A tar of two kilobytes, whose member would be read as a gigabyte of zeros."""
    with tarfile.open(tmp_path / "evil.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        bomb = tarfile.TarInfo("a.mp4")
        bomb.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**30)}
        tar.addfile(bomb)
    with pytest.raises(ManifestError, match="a: expected its files"):
        read_sample(tmp_path, {"shard": "evil.tar", "key": "a", "offset": 0, "size": 10240})
