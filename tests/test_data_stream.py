import io
from itertools import islice

import numpy as np
import pytest
import torch
from made_clips import sample, write_dataset

from videodiff.data import stream as stream_module
from videodiff.data.buckets import Bucket
from videodiff.data.decode import DecodeError, decode, resize
from videodiff.data.manifest import Manifest, ManifestError
from videodiff.data.mixture import Dataset, Mixture
from videodiff.data.order import Mesh
from videodiff.data.shards import ShardWriter, read_sample
from videodiff.data.stream import Clips, GlobalBatches, Item, collate


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return Manifest.load(write_dataset(tmp_path_factory.mktemp("stream"), count=6, frames=20))


def clips(manifest, frames=4, stride=1, skip_short=False, **how):
    shape = Bucket(frames, 32, 32, strides=(stride,))
    return Clips(manifest, [shape], skip=skip_short, any_size=True, **how)


class Numbered:
    """Stands for the clips of a dataset of one shard: a member is its index."""

    def index(self, shard, kind, member):
        return member


def batches(samples, global_batch, micro=None, rank=0, world=1, seed=0, start=0):
    """Return the batches of a rank over a dataset of one shard and one bucket."""
    data = Dataset(counts=np.array([[samples]]), kinds=np.array([1]))
    mixture = Mixture([data], [Bucket(4, 32, 32)], [global_batch], seed)
    accumulate = global_batch // ((micro or global_batch) * world)
    return GlobalBatches(mixture, [Numbered()], accumulate, Mesh(rank, world), start)


def whole(manifest, index):
    return decode(read_sample(manifest.root, manifest.row(index))["mp4"], range(manifest.row(index)["frames"]))


def start_of(window, clip):
    """Return where in a clip a window begins, by its content."""
    (start,) = (s for s in range(len(clip)) if np.array_equal(clip[s], window[0]))
    return start


def merged(ranks, steps, each):
    """Return the items of the first `steps` steps of all ranks, in the order of their positions."""
    items = [item for rank in ranks for batch in islice(rank, steps * each) for item in batch]
    return sorted(items)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("step", [0, 3, 100])
def test_started_at_a_step_the_stream_is_the_tail_of_one_from_the_start(world, micro, step):
    each = 8 // (micro * world)
    tail = [batches(6, 8, micro, rank, world, seed=5, start=step) for rank in range(world)]
    one = merged([batches(6, 8, 8, seed=5)], step + 4, 1)
    assert merged(tail, 4, each) == [item for item in one if item.step >= step]


def test_micro_batches_of_all_ranks_have_one_size():
    sizes = {len(batch) for rank in range(4) for batch in islice(batches(3, 16, 2, rank, 4), 10)}
    assert sizes == {2}


def test_an_epoch_holds_every_sample_once_across_ranks_and_batches():
    items = merged([batches(24, 8, 2, rank, 2, seed=1) for rank in range(2)], 6, 2)
    for epoch in (0, 1):
        assert sorted(item.index for item in items if item.epoch == epoch) == list(range(24))


def test_the_start_may_be_a_function_that_is_asked_at_every_iteration():
    step = [2]
    endless = batches(6, 4, 4, start=lambda: step[0])
    first = next(iter(endless))[0].step
    step[0] = 7
    assert (first, next(iter(endless))[0].step) == (2, 7)


def test_a_clip_is_a_window_of_consecutive_frames_with_its_caption(manifest):
    got = clips(manifest)[Item(3, 1, 0, 2)]
    original = whole(manifest, 2)
    start = start_of(got["video"], original)
    assert np.array_equal(got["video"], original[start : start + 4])
    assert (got["caption"], got["key"], got["fps"]) == ("a red square number 2", "clip2", 5.0)
    assert (got["step"], got["position"]) == (3, 1)


def test_a_stride_skips_frames_and_slows_the_frame_rate(manifest):
    got, original = clips(manifest, stride=3)[Item(0, 0, 0, 2)], whole(manifest, 2)
    start = start_of(got["video"], original)
    assert np.array_equal(got["video"], original[start : start + 10 : 3])
    assert got["fps"] == pytest.approx(5 / 3)


def test_windows_reach_from_the_first_to_the_last_frame(manifest):
    data, original = clips(manifest, frames=17), whole(manifest, 1)
    starts = {start_of(data[Item(0, 0, epoch, 1)]["video"], original) for epoch in range(40)}
    assert starts == {0, 1, 2, 3}


def test_the_window_depends_on_seed_epoch_and_sample_and_on_nothing_else(manifest):
    def videos(seed, epoch, step=0, position=0):
        data = clips(manifest, seed=seed)
        return [data[Item(step, position, epoch, index)]["video"].tobytes() for index in range(6)]

    assert videos(1, 0) == videos(1, 0, step=9, position=5)
    assert videos(1, 0) != videos(2, 0)
    assert videos(1, 0) != videos(1, 1)


def test_a_cache_changes_nothing_but_the_number_of_reads(manifest, monkeypatch):
    reads = []

    def read(*arguments):
        reads.append(arguments)
        return read_sample(*arguments)

    items = [Item(0, 0, epoch, index) for epoch in range(5) for index in range(6)]
    plain, cached = clips(manifest), clips(manifest, cache_gib=1.0)
    expected = [plain[item]["video"] for item in items]
    monkeypatch.setattr(stream_module, "read_sample", read)
    assert all(np.array_equal(cached[item]["video"], video) for item, video in zip(items, expected, strict=True))
    assert len(reads) == 6


def test_a_cache_takes_no_more_memory_than_it_may(manifest):
    room = 2.5 * 20 * 32 * 32 * 3
    data = clips(manifest, cache_gib=room / 2**30)
    for index in range(6):
        data[Item(0, 0, 0, index)]
    held = sum(loaded.frames.nbytes for loaded in data.cache.values())
    assert 0 < held <= room


def test_fixed_clips_begin_with_the_first_frame(manifest):
    data = clips(manifest, fixed=True, cache_gib=1.0)
    for epoch in (0, 1, 0):
        assert np.array_equal(data[Item(0, 0, epoch, 4)]["video"], whole(manifest, 4)[:4])


def test_frames_are_scaled_and_cropped(manifest):
    got = Clips(manifest, [Bucket(4, 16, 24)], fixed=True)[Item(0, 0, 0, 0)]["video"]
    assert np.array_equal(got, resize(whole(manifest, 0)[:4], 16, 24))


def test_one_frame_is_a_clip(manifest):
    assert clips(manifest, frames=1)[Item(0, 0, 0, 0)]["video"].shape == (1, 32, 32, 3)


def test_all_captions_of_a_sample_are_used(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.add("a", *sample(0, captions=("one", "two", "three")))
    data = clips(Manifest.load(tmp_path))
    assert {data[Item(0, 0, epoch, 0)]["caption"] for epoch in range(40)} == {"one", "two", "three"}
    assert clips(Manifest.load(tmp_path), fixed=True)[Item(0, 0, 7, 0)]["caption"] == "one"


def test_a_sample_without_caption_has_the_empty_one(tmp_path):
    members, row = sample(0)
    with ShardWriter(tmp_path) as writer:
        writer.add("a", {"mp4": members["mp4"]}, row)
    assert clips(Manifest.load(tmp_path))[Item(0, 0, 0, 0)]["caption"] == ""


def test_the_truth_is_cut_to_the_window(tmp_path):
    truth = {"position": [[[float(t), 0.0]] for t in range(8)], "radius": [1.0], "fps": 5.0}
    with ShardWriter(tmp_path) as writer:
        writer.add("a", *sample(0, truth=truth))
        writer.add("b", *sample(1))
    data = clips(Manifest.load(tmp_path), frames=3, stride=2, fixed=True)
    found = data[Item(0, 0, 0, 0)]["truth"]
    assert found == {"position": [[[0.0, 0.0]], [[2.0, 0.0]], [[4.0, 0.0]]], "radius": [1.0], "fps": 2.5}
    assert data[Item(0, 0, 0, 1)]["truth"] is None


def test_a_batch_has_the_axes_and_types_of_the_model(manifest):
    data = clips(manifest)
    items = next(iter(batches(6, 4, 2, rank=1, world=2, seed=3, start=11)))
    batch = collate([data[item] for item in items])
    assert (batch["video"].shape, batch["video"].dtype) == ((2, 3, 4, 32, 32), torch.uint8)
    assert batch["video"].is_contiguous()
    assert np.array_equal(batch["video"][1].permute(1, 2, 3, 0).numpy(), data[items[1]]["video"])
    assert (batch["fps"].tolist(), batch["fps"].dtype) == ([5.0, 5.0], torch.float32)
    assert (batch["position"].tolist(), batch["position"].dtype) == ([2, 3], torch.int64)
    assert batch["key"] == [f"clip{item.index}" for item in items]
    assert batch["caption"] == [f"a red square number {item.index}" for item in items]
    assert batch["step"] == 11
    assert "truth" not in batch


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_cached_latents_and_text_are_delivered_in_place_of_video(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for number in range(2):
            members, row = sample(number)
            latent = npy(np.full((4, 2, 3, 3), number, dtype=np.float16))
            text = npy(np.ones((2 + number, 5), dtype=np.float16))
            writer.add(f"clip{number}", {**members, "latent.npy": latent, "text.npy": text}, row)
    data = clips(Manifest.load(tmp_path), deliver=("latent", "text"))
    batch = collate([data[Item(0, n, 0, n)] for n in range(2)])
    assert "video" not in batch
    assert (batch["latent"].shape, batch["latent"].mean(dim=(1, 2, 3, 4)).tolist()) == ((2, 4, 2, 3, 3), [0.0, 1.0])
    assert (batch["text"].shape, batch["text_mask"].sum(1).tolist()) == ((2, 3, 5), [2, 3])


def test_a_dataset_without_latents_that_are_asked_for_is_an_error(manifest):
    with pytest.raises(ManifestError, match=r"shard-00000\.tar: clip0: found no latent\.npy"):
        clips(manifest, deliver=("latent",))[Item(0, 0, 0, 0)]


def test_an_undecodable_video_is_an_error_that_names_shard_and_key(tmp_path):
    members, row = sample(0)
    with ShardWriter(tmp_path) as writer:
        writer.add("bad", {**members, "mp4": members["mp4"][:400]}, row)
    with pytest.raises(DecodeError, match=r"shard-00000\.tar: bad\.mp4: "):
        clips(Manifest.load(tmp_path))[Item(0, 0, 0, 0)]


def test_a_video_with_fewer_frames_than_the_manifest_says_is_an_error_that_names_it(tmp_path):
    members, row = sample(0, frames=8)
    with ShardWriter(tmp_path) as writer:
        writer.add("liar", members, {**row, "frames": 20})
    with pytest.raises(DecodeError, match=r"liar\.mp4: found 8 frames, expected frame 19"):
        clips(Manifest.load(tmp_path), frames=20)[Item(0, 0, 0, 0)]


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
    assert [data[Item(0, 0, 0, index)]["key"] for index in range(len(data))] == ["clip0", "clip2"]


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
    counts, kinds = data.counts()
    assert counts.shape == (6, 2)
    found = [
        (data.manifest.row(int(data.rows[data.index(shard, kind, member)]))["key"], kind)
        for column, kind in enumerate(kinds.tolist())
        for shard in range(6)
        for member in range(counts[shard, column])
    ]
    assert sorted(found) == [("clip0", 3), ("clip1", 2), ("clip3", 3), ("clip4", 2), ("clip5", 3)]


def test_a_sample_comes_in_the_shape_of_the_bucket_that_its_item_names(manifest):
    data = Clips(manifest, [Bucket(8, 16, 24), Bucket(1, 32, 32)], cache_gib=1.0)
    for _ in range(2):
        assert data[Item(0, 0, 0, 3, bucket=0)]["video"].shape == (8, 16, 24, 3)
        assert data[Item(0, 0, 0, 3, bucket=1)]["video"].shape == (1, 32, 32, 3)
