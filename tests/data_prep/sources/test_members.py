"""What a sample of prepared data holds beside its video, and which shard it lies in."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset as wds

from data_prep.cut.encode import EncodePolicy, first_working, open_encoder
from tests.data_prep.cut.test_audio import RATE, lag, samples_of, sweep, with_sound
from tests.material.made_clips import sample
from tests.material.preparing import prep
from tests.material.scored_clips import panning
from videodiff.data.loader.datamodule import clip_data
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter, read_notes, read_sample
from videodiff.data.video.encode import encode

BUCKETS = [{"frames": 16, "height": 32, "width": 48, "global_batch": 2}, {"frames": 4, "height": 32, "width": 32}]
HOW = {"encode": {"short_side": 32}, "workers": 1, "score": False}


def samples(out: Path) -> list[tuple[dict, dict[str, bytes]]]:
    """Return the rows and members of a dataset."""
    manifest = Manifest.load(out)
    rows = [manifest.row(number) for number in range(len(manifest))]
    return [(row, read_sample(out, row)) for row in rows]


def test_groups_have_shards_of_their_own_and_only_the_last_of_each_is_not_full(tmp_path):
    with ShardWriter(tmp_path, shard_bytes=20_480) as writer:
        for number in range(20):
            writer.add(f"clip{number:02d}", *sample(number), group="ab"[number % 2])
    manifest = Manifest.load(tmp_path)
    names = [shard["name"] for shard in manifest.shards]
    fullest = max(shard["samples"] for shard in manifest.shards)
    assert names == sorted(path.name for path in tmp_path.glob("*.tar")) == writer_names(names)
    assert len(names) == 2 * -(-10 // fullest) > 2
    for letter, odd in ("a", 0), ("b", 1):
        keys = [row["key"] for row, _ in samples(tmp_path) if row["shard"].startswith(f"shard-{letter}-")]
        assert keys == [f"clip{number:02d}" for number in range(odd, 20, 2)]
    read = wds.WebDataset([str(tmp_path / name) for name in names], shardshuffle=False)
    assert [each["__key__"] for each in read] == manifest.column("key").tolist()
    # Written again without groups, nothing of them stays.
    with ShardWriter(tmp_path) as writer:
        writer.add("one", *sample(0))
    assert [path.name for path in tmp_path.glob("*.tar")] == ["shard-00000.tar"]


def test_what_no_reader_takes_of_a_clip_costs_no_other(tmp_path, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, speed in (("good", 1), ("wordy", 2)):
        (folder / f"{name}.mp4").write_bytes(encode(panning(20, height=64, width=64, speed=speed), 8.0))
    (folder / "good.json").write_text(json.dumps({"caption": "a wall", "licence": "word " * 14_000, "truth": [1]}))
    # Each of the two may be read; together, as one json, they may not.
    (folder / "wordy.txt").write_text("é " * 300_000)
    (folder / "wordy.json").write_text(json.dumps({"caption": "ü " * 300_000}))
    assert prep(out, folder, **HOW)["filtered"] == {"captions too long": 1}
    ((row, members),) = samples(out)
    notes = read_notes(members)
    assert row["licence"] == notes["licence"] == ("word " * 14_000)[:4093] + "..."
    assert (len(notes["times"]), notes["truth"]) == (20, [1])
    # The times of a film of hours are left out, then its truth, and all else stays.
    for left, gone in ((1, {"times": None}), (len(json.dumps(notes["times"])), {"times": None, "truth": None})):
        monkeypatch.setattr("data_prep.choose.curate.TEXT_LIMIT", len(members["json"]) - left)
        prep(out, **HOW)
        ((_, shorter),) = samples(out)
        assert read_notes(shorter) == notes | gone


def writer_names(names: list[str]) -> list[str]:
    return [f"shard-{letter}-{number:05d}.tar" for letter in "ab" for number in range(len(names) // 2)]


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    """Return a folder of long wide clips, short square ones, and one too small for either bucket, in turns."""
    folder = tmp_path_factory.mktemp("footage")
    for seed in range(3):
        for name, (frames, height, width) in {"wide": (20, 64, 96), "square": (6, 64, 64)}.items():
            video = encode(panning(frames, height=height, width=width, speed=2, seed=seed), 8.0)
            (folder / f"{seed}{name}.mp4").write_bytes(video)
    (folder / "1tiny.mp4").write_bytes(encode(panning(20, height=16, width=16, speed=1, seed=9), 8.0))
    return folder


def test_the_clips_of_a_bucket_lie_together_and_train(footage, tmp_path):
    prep(tmp_path / "out", footage, buckets=BUCKETS, **HOW)
    found = {}
    for row, _ in samples(tmp_path / "out"):
        found.setdefault(row["shard"], []).append(row["source"])
    assert found == {
        "shard-16x32x48-00000.tar": ["0wide.mp4", "1wide.mp4", "2wide.mp4"],
        "shard-4x32x32-00000.tar": ["0square.mp4", "1square.mp4", "2square.mp4"],
        "shard-none-00000.tar": ["1tiny.mp4"],
    }
    # The same clips, grouped in another way; nothing is decoded.
    prep(tmp_path / "out", buckets=None, **HOW)
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["shard-00000.tar"]
    prep(tmp_path / "out", buckets=BUCKETS, takedown=gone(tmp_path), **HOW)
    rules = [BUCKETS[0], {**BUCKETS[1], "global_batch": 3}]
    data = clip_data(root=str(tmp_path / "out"), frames=4, height=32, width=32, global_batch=2, buckets=rules)
    batches = [batch for _, batch in zip(range(8), data.train_dataloader(), strict=False)]
    assert {tuple(batch["video"].shape) for batch in batches} == {(2, 3, 16, 32, 48), (3, 3, 4, 32, 32)}


def gone(folder: Path) -> Path:
    (folder / "gone.txt").write_text("1tiny.mp4\n")
    return folder / "gone.txt"


def test_a_bucket_that_is_none_is_told_before_anything_is_written(footage, tmp_path):
    with pytest.raises(ValueError, match=r"buckets\[0\]\.hight: found no such key, expected some of frames"):
        prep(tmp_path / "out", footage, buckets=[{"frames": 4, "hight": 32, "width": 32}])
    with pytest.raises(ValueError, match="audio: found 'maybe', expected drop or keep"):
        prep(tmp_path / "out", footage, audio="maybe")
    assert not (tmp_path / "out").exists()


def broken_sound() -> bytes:
    """Return a video of 4 s whose sound is noise where there should be packets."""
    source, file = av.open(io.BytesIO(with_sound(sweep()))), io.BytesIO()
    rng = np.random.default_rng(0)
    with source, av.open(file, "w", format="matroska") as out:
        streams = [out.add_stream_from_template(stream) for stream in source.streams]
        for packet in source.demux():
            if packet.size:
                new = packet
                if packet.stream.type == "audio":
                    new = av.Packet(rng.bytes(packet.size))
                    new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
                new.stream = streams[packet.stream.index]
                out.mux(new)
    return file.getvalue()


def test_sound_is_kept_beside_its_clip_and_never_costs_it(footage, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "loud.mkv").write_bytes(with_sound(sweep()))
    (folder / "noise.mkv").write_bytes(broken_sound())
    (folder / "silent.mp4").write_bytes((footage / "0wide.mp4").read_bytes())
    (tmp_path / "list.jsonl").write_text(
        '{"video": "loud.mkv", "from": 1.25, "to": 2.5}\n'
        '{"video": "noise.mkv", "from": 1.5, "to": 2.5}\n'
        '{"video": "silent.mp4", "from": 0.5, "to": 1.5}\n'
    )
    how = {"kind": "table", "root": folder, "reader": {"columns": {"video": "video", "start": "from", "end": "to"}}}
    summary = prep(tmp_path / "out", tmp_path / "list.jsonl", audio="keep", **how, **HOW)
    assert summary["ok"] == 3, summary
    (_, loud), (_, noise), (_, silent) = samples(tmp_path / "out")
    assert [sorted(members) for members in (loud, noise, silent)] == [
        ["json", "m4a", "mp4", "txt"],
        ["json", "mp4", "txt"],
        ["json", "mp4", "txt"],
    ]
    heard, expected = samples_of(loud["m4a"])[0], sweep()[0, round(1.25 * RATE) : round(2.5 * RATE)]
    assert abs(lag(heard, expected)) <= 1
    assert "cannot be decoded" in read_notes(noise)["audio"]["lost"]
    assert read_notes(silent)["audio"] == {"lost": "found no sound in the video"}
    (tmp_path / "gone.txt").write_text("loud.mkv\n")
    prep(tmp_path / "out", takedown=tmp_path / "gone.txt", audio="keep", **HOW)
    assert list(tmp_path.rglob("*.m4a")) == []
    prep(tmp_path / "quiet", tmp_path / "list.jsonl", **how, **HOW)
    assert all("m4a" not in members for _, members in samples(tmp_path / "quiet"))


def test_auto_takes_an_encoder_that_works_and_says_which(footage, tmp_path):
    prep(tmp_path / "out", footage, **{**HOW, "encode": {"short_side": 32, "codec": "auto"}})
    used = {read_notes(members)["parameters"]["encode"]["codec"] for _, members in samples(tmp_path / "out")}
    # Clips of 32 lines are smaller than hardware takes.
    assert used == {"libx264"}
    assert open_encoder(256, 256, 24.0, EncodePolicy(codec="auto"))[1] == first_working()
