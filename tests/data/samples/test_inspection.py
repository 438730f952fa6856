"""What inspect tells of a dataset, of what training takes of it, and of the speed of the loader."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import tiny
from tests.material.made_clips import sample, write_dataset
from tests.material.peaks import peak_of
from videodiff.data.loader.clips import Clips, Reader
from videodiff.data.order.buckets import Bucket
from videodiff.data.samples.inspection import (
    describe_dataset,
    encoding_of,
    format_description,
    format_fits,
    format_shares,
    survey,
)
from videodiff.data.samples.manifest import Manifest, ManifestWriter
from videodiff.data.samples.shards import ShardWriter
from videodiff.planning.throughput import measure


def described(root, captions_read=1000):
    manifest = Manifest.load(root)
    return describe_dataset(manifest, survey(manifest), captions_read)


@pytest.fixture
def description(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.add("a", *sample(0, 8, captions=("a red ball moves",)))
        writer.add("b", *sample(1, 20, captions=("a blue ball", "two words")))
        writer.add("c", *sample(2, 8, captions=()))
    return described(tmp_path)


def test_a_description_counts_clips_sizes_and_hours(description):
    assert (description["samples"], description["shards"]) == (3, 1)
    assert description["hours"] == pytest.approx((8 + 20 + 8) / 5 / 3600)
    assert (description["sizes"], description["frames"], description["fps"]) == ({"32x32": 3}, {8: 2, 20: 1}, {"5": 3})
    assert (description["sources"], description["licences"]) == ({"made": 3}, {"CC0-1.0": 3})


def test_a_description_tells_of_the_captions(description):
    assert (description["captions"], description["without_caption"]) == (3, 1)
    assert description["caption_words"] == (2, 3.0, 4)
    assert description["top_words"]["ball"] == pytest.approx(2 / 3)
    assert description["first_captions"] == ["a red ball moves", "a blue ball", "two words"]


def test_the_lines_show_what_matters(description):
    text = format_description(description)
    assert "3 in 1 shard," in text
    assert "8 (2), 20 (1)" in text
    assert '"a blue ball"' in text
    assert "3 of 2 to 4 words (median 3, 3 read); 1 clip has none" in text
    # A caption may have as many words as a book.
    long = format_description({**description, "first_captions": ["word " * 40 + "end", "x" * 200]})
    assert f'"{"word " * 40}..."' in long
    assert f'"{"x" * 200}"' in long


def test_of_a_large_dataset_only_some_captions_are_read(tmp_path):
    write_dataset(tmp_path, count=9)
    description = described(tmp_path, captions_read=3)
    assert description["first_captions"] == [f"a red square number {number}" for number in (0, 4, 8)]
    assert (description["captions"], description["captions_read"]) == (9, 3)


ROW = {
    "width": 64, "height": 64, "frames": 16, "fps": 8.0, "duration": 2.0, "captions": 1, "source": "", "licence": "",
    "sha256": "0" * 64,
}  # fmt: skip


def write_manifest(root, shards):
    """Write a manifest of tars that only say how large they are; `shards` are lists of rows."""
    root.mkdir(exist_ok=True)
    with ManifestWriter(root) as writer:
        for number, rows in enumerate(shards):
            name = f"{number:05d}.tar"
            (root / name).touch()
            with (root / name).open("wb") as file:
                file.truncate(1024 * len(rows))
            shard = {"name": name, "bytes": 1024 * len(rows), "samples": len(rows), "sha256": "0" * 64}
            places = [{"shard": name, "key": f"{n}", "offset": 1024 * n, "size": 1024} for n in range(len(rows))]
            writer.add(shard, [{**ROW, **row, **place} for row, place in zip(rows, places, strict=True)])
    return Manifest.load(root)


def test_clips_are_counted_by_bucket_and_those_that_fit_none_by_reason(tmp_path):
    buckets = [Bucket(16, 64, 64), Bucket(4, 32, 32, crop=0.2)]
    shards = [
        [{}, {"frames": 3}, {"height": 16, "width": 16}, {"frames": 8, "height": 16, "width": 16}],
        [{"height": 40, "width": 40}, {"width": 200}, {"height": 33, "width": 99}],
    ]
    found = survey(write_manifest(tmp_path, shards), buckets)
    assert found.fitting == [1, 2]
    assert found.misfits == {"too few frames": 1, "too small": 2, "cropped too much": 2}
    assert (found.kinds.tolist(), found.counts.tolist()) == ([2, 3], [[0, 1], [1, 0]])
    text = format_fits(0, buckets, [found])
    assert "1 fit 16 x 64 x 64, 2 fit 4 x 32 x 32; 5 of 7 fit none: too small (2), cropped too much (2)" in text
    assert survey(Manifest.load(tmp_path), buckets, any_size=True).misfits == {"too few frames": 1}


def test_the_counts_are_those_that_the_order_of_training_is_made_of(tmp_path):
    random = np.random.default_rng(0)
    sizes = random.choice([16, 40, 64], (30, 5, 2))
    shards = [
        [{"frames": int(random.integers(1, 20)), "height": int(h), "width": int(w)} for h, w in shard]
        for shard in sizes
    ]
    manifest, buckets = write_manifest(tmp_path, shards), [Bucket(8, 64, 64), Bucket(4, 40, 40), Bucket(1, 16, 32)]
    found, clips = survey(manifest, buckets), Clips(manifest, buckets, skip=True)
    assert np.array_equal(found.counts, clips.counts)
    assert np.array_equal(found.kinds, clips.kinds)
    assert sum(found.misfits.values()) == len(manifest) - len(clips)


def test_sources_are_told_by_host_or_first_folder(tmp_path):
    names = ["https://video.example/watch?v=1", "https://video.example/2", "films/a/b.mp4", "films/c.mp4", "made", ""]
    found = survey(write_manifest(tmp_path, [[{"source": name, "licence": "CC0-1.0"} for name in names]]))
    assert found.sources == {"video.example": 2, "films/": 2, "made": 1, "": 1}
    text = format_shares(["x"], [Fraction(1)], [found])
    assert "video.example 33.3%, films/ 33.3%, made 16.7%, not stated 16.7%" in text
    assert "CC0-1.0 100.0%" in text


def test_what_a_manifest_of_others_says_is_shown_without_secrets_on_its_own_line(tmp_path):
    clip = {"source": "https://me:word@video.example/2", "licence": "CC0\nclips       1,000,000"}
    found = survey(write_manifest(tmp_path, [[clip]]))
    text = format_shares(["x"], [Fraction(1)], [found])
    assert "video.example 100.0%" in text
    assert "word" not in text
    assert len(text.splitlines()) == 3


def test_shares_follow_how_often_a_dataset_is_drawn(tmp_path):
    one = survey(write_manifest(tmp_path / "one", [[{"source": "one"}] * 30]), [Bucket(1, 8, 8)])
    two = survey(write_manifest(tmp_path / "two", [[{"source": "two"}] * 10]), [Bucket(1, 8, 8)])
    text = format_shares(["a", "b"], [Fraction(1, 2), Fraction(3, 2)], [one, two])
    assert text.splitlines() == ["drawn from  a 50.0%, b 50.0%", "  source    one 50.0%, two 50.0%",
                                 "  licence   not stated 100.0%"]  # fmt: skip


def test_memory_does_not_grow_with_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("videodiff.data.samples.inspection.VALUES", 2000)

    def peak(count: int) -> int:
        rows = [
            [{"source": f"{count}-{n}-{i}", "frames": 16 + i % 5} for i in range(1000)] for n in range(count // 1000)
        ]
        manifest = write_manifest(tmp_path / str(count), rows)
        del rows

        def look() -> None:
            found = survey(manifest, [Bucket(16, 64, 64), Bucket(1, 64, 64)])
            assert (found.samples, found.counts.sum()) == (count, count)
            assert len(found.sources) <= 2000

        return peak_of(look, times=1)

    assert peak(200_000) < 1.3 * peak(40_000)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_is_measured_against_bare_processes(tmp_path, workers):
    manifest = Manifest.load(write_dataset(tmp_path, count=4))
    clips, reader = Clips(manifest, [Bucket(4, 32, 32)]), Reader([manifest.root])
    tasks = [clips.task(row) for row in range(4)]
    endless = ({"key": [reader.alone(task)["key"] for task in tasks]} for _ in iter(int, 1))
    found = measure(endless, reader, tasks, workers, seconds=1.2)
    assert found.loader > 0
    assert found.ceiling > found.loader / 5
    with pytest.raises(ValueError, match="found the end of the batches"):
        measure(iter([{"key": ["a"]}]), reader, tasks, 0, seconds=1.0)


def test_a_record_of_others_is_one_line_whatever_it_says() -> None:
    assert encoding_of({"of": "a model\nof 3", "sizes": "x", "stride": [2]}) == "by a model of 3, sizes x, stride [2]"
    assert encoding_of({}) == "by None"


def test_a_reason_is_given_only_where_there_is_one(tmp_path):
    assert survey(write_manifest(tmp_path, [[{}]]), [Bucket(1, 8, 8)]).misfits == Counter()


def test_verify_names_the_shards_whose_bytes_have_changed(world_dataset, call, tmp_path):
    root = Path(shutil.copytree(world_dataset, tmp_path / "data"))
    status, out, err = call("inspect", str(root), "verify=true")
    assert status == 0, err
    assert "1 shard has the sha256 of the manifest" in out
    with next(root.glob("*.tar")).open("r+b") as file:
        file.seek(700)
        byte = file.read(1)
        file.seek(700)
        file.write(bytes([255 - byte[0]]))
    status, _, err = call("inspect", str(root), "verify=true")
    assert status == 1
    assert "found 1 damaged shard: shard-00000.tar: sha256 " in err.splitlines()[-1]


def test_a_clip_whose_bytes_have_changed_is_replaced_and_named(world_dataset, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = Path(shutil.copytree(world_dataset, tmp_path / "data"))
    row = Manifest.load(root).row(3)
    with tarfile.open(root / row["shard"]) as tar:
        member = tar.getmember(f"{row['key']}.mp4")
    # The comment that the encoder left is no part of what a decoder looks at.
    with (root / row["shard"]).open("r+b") as file:
        file.seek(member.offset_data)
        at = file.read(member.size).index(b"x264")
        file.seek(member.offset_data + at)
        file.write(b"y")
    status, _, err = call("train", "name=a", *tiny(root), "trainer.max_steps=6")
    assert status == 0, err
    (lost,) = map(json.loads, Path("runs/a/quarantine.jsonl").read_text().splitlines())
    assert lost["key"] == row["key"]
    assert "found other bytes (" in lost["reason"]
