import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.material.made_clips import sample, write_dataset
from videodiff.data.loader import clips as clips_module
from videodiff.data.loader.clips import Clips, Reader
from videodiff.data.order.buckets import Bucket
from videodiff.data.samples.indexing import index_tars
from videodiff.data.samples.manifest import Manifest, ManifestError
from videodiff.data.samples.shards import ShardWriter, read_sample
from videodiff.data.video.decode import DecodeError, decode, resize


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return Manifest.load(write_dataset(tmp_path_factory.mktemp("clips"), count=6, frames=20))


def opened(manifest, buckets, cache_gib=0.0, deliver=("video",), **how):
    """Return a function that reads a clip of a dataset: row, bucket, epoch."""
    clips = Clips(manifest, buckets, deliver=deliver, **how)
    reader = Reader([manifest.root], deliver, cache_gib)

    def read(row, bucket=0, epoch=0):
        return reader.alone(clips.task(row, bucket, epoch))

    read.clips, read.reader = clips, reader
    return read


def clips(manifest, frames=4, stride=1, skip_short=False, **how):
    return opened(manifest, [Bucket(frames, 32, 32, strides=(stride,))], skip=skip_short, any_size=True, **how)


def whole(manifest, row):
    return decode(read_sample(manifest.root, manifest.row(row))["mp4"], range(manifest.row(row)["frames"]))


def start_of(window, clip):
    """Return where in a clip a window begins, by its content."""
    (start,) = (s for s in range(len(clip)) if np.array_equal(clip[s], window[0]))
    return start


def test_a_clip_is_a_window_of_consecutive_frames_with_its_caption(manifest):
    got = clips(manifest)(2)
    original = whole(manifest, 2)
    start = start_of(got["video"], original)
    assert np.array_equal(got["video"], original[start : start + 4])
    assert (got["caption"], got["key"], got["fps"]) == ("a red square number 2", "clip2", 5.0)


def test_a_stride_skips_frames_and_slows_the_frame_rate(manifest):
    got, original = clips(manifest, stride=3)(2), whole(manifest, 2)
    start = start_of(got["video"], original)
    assert np.array_equal(got["video"], original[start : start + 10 : 3])
    assert got["fps"] == pytest.approx(5 / 3)


def test_windows_reach_from_the_first_to_the_last_frame(manifest):
    data, original = clips(manifest, frames=17), whole(manifest, 1)
    starts = {start_of(data(1, epoch=epoch)["video"], original) for epoch in range(40)}
    assert starts == {0, 1, 2, 3}


def test_the_window_depends_on_seed_epoch_and_sample_and_on_nothing_else(manifest):
    def videos(seed, epoch):
        data = clips(manifest, seed=seed)
        return [data(index, epoch=epoch)["video"].tobytes() for index in range(6)]

    assert videos(1, 0) == videos(1, 0)
    assert videos(1, 0) != videos(2, 0)
    assert videos(1, 0) != videos(1, 1)


def test_a_cache_changes_nothing_but_the_number_of_reads(manifest, monkeypatch):
    reads = []

    def read(*arguments):
        reads.append(arguments)
        return read_sample(*arguments)

    items = [(index, 0, epoch) for epoch in range(5) for index in range(6)]
    plain, cached = clips(manifest), clips(manifest, cache_gib=1.0)
    expected = [plain(*item)["video"] for item in items]
    monkeypatch.setattr(clips_module, "read_sample", read)
    assert all(np.array_equal(cached(*item)["video"], video) for item, video in zip(items, expected, strict=True))
    assert len(reads) == 6


def test_a_cache_takes_no_more_memory_than_it_may(manifest):
    room = 2.5 * 20 * 32 * 32 * 3
    data = clips(manifest, cache_gib=room / 2**30)
    for index in range(6):
        data(index)
    held = sum(loaded.frames.nbytes for loaded in data.reader.kept.values())
    assert 0 < held <= room


def test_an_image_is_a_clip_of_one_frame(tmp_path):
    picture, file = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3), io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for name, data in (("a.png", file.getvalue()), ("a.txt", b"noise")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    index_tars(str(tmp_path), workers=1)
    got = clips(Manifest.load(tmp_path), frames=1)(0)
    assert (got["caption"], got["video"].shape) == ("noise", (1, 32, 32, 3))
    assert np.array_equal(got["video"][0], picture)


def test_fixed_clips_begin_with_the_first_frame(manifest):
    data = clips(manifest, fixed=True, cache_gib=1.0)
    for epoch in (0, 1, 0):
        assert np.array_equal(data(4, epoch=epoch)["video"], whole(manifest, 4)[:4])


def test_frames_are_scaled_and_cropped(manifest):
    got = opened(manifest, [Bucket(4, 16, 24)], fixed=True)(0)["video"]
    assert np.array_equal(got, resize(whole(manifest, 0)[:4], 16, 24))


def test_one_frame_is_a_clip(manifest):
    assert clips(manifest, frames=1)(0)["video"].shape == (1, 32, 32, 3)


def test_all_captions_of_a_sample_are_used(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.add("a", *sample(0, captions=("one", "two", "three")))
    data = clips(Manifest.load(tmp_path))
    assert {data(0, epoch=epoch)["caption"] for epoch in range(40)} == {"one", "two", "three"}
    assert clips(Manifest.load(tmp_path), fixed=True)(0, epoch=7)["caption"] == "one"


def test_a_sample_without_caption_has_the_empty_one(tmp_path):
    members, row = sample(0)
    with ShardWriter(tmp_path) as writer:
        writer.add("a", {"mp4": members["mp4"]}, row)
    assert clips(Manifest.load(tmp_path))(0)["caption"] == ""


def test_the_truth_is_cut_to_the_window(tmp_path):
    truth = {"position": [[[float(t), 0.0]] for t in range(8)], "radius": [1.0], "fps": 5.0}
    with ShardWriter(tmp_path) as writer:
        writer.add("a", *sample(0, truth=truth))
        writer.add("b", *sample(1))
    data = clips(Manifest.load(tmp_path), frames=3, stride=2, fixed=True)
    found = data(0)["truth"]
    assert found == {"position": [[[0.0, 0.0]], [[2.0, 0.0]], [[4.0, 0.0]]], "radius": [1.0], "fps": 2.5}
    assert data(1)["truth"] is None


@pytest.mark.parametrize("truth", ["blue", 1, ["a"], {"answer": "yes"}, {"fps": "five"}])
def test_what_other_people_call_truth_is_no_truth_of_a_simulated_clip(tmp_path, truth):
    with ShardWriter(tmp_path) as writer:
        writer.add("a", *sample(0, truth=truth))
    assert clips(Manifest.load(tmp_path), fixed=True)(0)["truth"] is None


def test_latents_and_text_that_nobody_says_the_origin_of_are_an_error(manifest):
    for what in ("latent", "text"):
        with pytest.raises(ManifestError, match=rf"found no record of the encoder of {what}\.npy"):
            clips(manifest, deliver=(what,))


def test_a_caption_that_cannot_be_read_is_an_error_that_names_shard_and_key(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.add("bad", *sample(0, captions=("a red ball",)))
    shard = tmp_path / "shard-00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"a red ball", b"\xe4 red ball"))
    with pytest.raises(ValueError, match=r"shard-00000\.tar: bad: txt: found a byte 0xe4 that is not UTF-8"):
        clips(Manifest.load(tmp_path))(0)


def test_an_undecodable_video_is_an_error_that_names_shard_and_key(tmp_path):
    members, row = sample(0)
    with ShardWriter(tmp_path) as writer:
        writer.add("bad", {**members, "mp4": members["mp4"][:400]}, row)
    with pytest.raises(DecodeError, match=r"shard-00000\.tar: bad\.mp4: "):
        clips(Manifest.load(tmp_path))(0)


def test_a_video_with_fewer_frames_than_the_manifest_says_is_an_error_that_names_it(tmp_path):
    members, row = sample(0, frames=8)
    with ShardWriter(tmp_path) as writer:
        writer.add("liar", members, {**row, "frames": 20})
    with pytest.raises(DecodeError, match=r"liar\.mp4: found 8 frames, expected frame 19"):
        clips(Manifest.load(tmp_path), frames=20)(0)


@pytest.fixture
def mixed(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for number, frames in enumerate((8, 3, 8)):
            writer.add(f"clip{number}", *sample(number, frames))
    return Manifest.load(tmp_path)


def test_a_clip_shorter_than_the_window_is_an_error_that_names_it(mixed):
    with pytest.raises(
        ValueError, match=r"clip1: found 3 frames of .* expected at least 7 for 4 x 32 x 32 \(1 of 3 clips"
    ):
        clips(mixed, frames=4, stride=2)


def test_short_clips_are_left_out_on_request(mixed):
    data = clips(mixed, frames=4, stride=2, skip_short=True)
    assert [data(row)["key"] for row in data.clips.fitting()] == ["clip0", "clip2"]


def test_leaving_out_all_clips_is_an_error(mixed):
    with pytest.raises(ValueError, match="expected at least 9"):
        clips(mixed, frames=9, skip_short=True)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"stride": 0}, {"deliver": ("audio",)}])
def test_a_window_or_delivery_that_there_is_not_is_an_error(manifest, wrong):
    with pytest.raises(ValueError, match="expected"):
        clips(manifest, **wrong)


def test_every_sample_of_every_shard_is_found_by_its_kind(tmp_path):
    with ShardWriter(tmp_path, shard_bytes=1) as writer:
        for number, frames in enumerate((9, 4, 2, 9, 5, 9)):
            writer.add(f"clip{number}", *sample(number, frames))
    buckets = [Bucket(8, 16, 16), Bucket(4, 16, 16), Bucket(3, 10_000, 16)]
    data = Clips(Manifest.load(tmp_path), buckets, skip=True)
    assert data.counts.shape == (6, 2)
    found = [
        (data.manifest.row(data.row(shard, kind, member))["key"], kind)
        for column, kind in enumerate(data.kinds.tolist())
        for shard in range(6)
        for member in range(data.counts[shard, column])
    ]
    assert sorted(found) == [("clip0", 3), ("clip1", 2), ("clip3", 3), ("clip4", 2), ("clip5", 3)]


def test_a_sample_comes_in_the_shape_of_the_bucket_that_its_item_names(manifest):
    data = opened(manifest, [Bucket(8, 16, 24), Bucket(1, 32, 32)], cache_gib=1.0)
    for _ in range(2):
        assert data(3)["video"].shape == (8, 16, 24, 3)
        assert data(3, 1)["video"].shape == (1, 32, 32, 3)
