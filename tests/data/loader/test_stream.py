from itertools import islice

import numpy as np
import pytest
import torch

from tests.material.made_clips import sample, write_dataset
from videodiff.data.loader.clips import Clips, Reader
from videodiff.data.loader.quarantine import Quarantine, QuarantineError
from videodiff.data.loader.stream import GlobalBatches, Loader
from videodiff.data.order.arithmetic import Mesh
from videodiff.data.order.buckets import Bucket
from videodiff.data.order.mixture import Dataset, Mixture
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter


class Numbered:
    """Stands for the clips of a dataset of one shard: a member is its row."""

    buckets = (Bucket(4, 32, 32),)

    def row(self, shard, kind, member):
        return member


def batches(samples, global_batch, micro=None, rank=0, world=1, seed=0, start=0, clips=None):
    """Return the batches of a rank over a dataset of one shard and one bucket."""
    data = Dataset(counts=np.array([[samples]]), kinds=np.array([1]))
    mixture = Mixture([data], [Bucket(4, 32, 32)], [global_batch], seed)
    accumulate = global_batch // ((micro or global_batch) * world)
    return GlobalBatches(mixture, [clips or Numbered()], accumulate, Mesh(rank, world), start)


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
        assert sorted(item.row for item in items if item.epoch == epoch) == list(range(24))


def test_the_start_may_be_a_function_that_is_asked_at_every_iteration():
    step = [2]
    endless = batches(6, 4, 4, start=lambda: step[0])
    first = next(iter(endless))[0].step
    step[0] = 7
    assert (first, next(iter(endless))[0].step) == (2, 7)


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path, count=6, frames=20, shard_bytes=10**6)


def loader(root, quarantine=None, deliver=("video",), **how):
    """Return a loader in this process over a dataset, and a function that reads a clip of it alone."""
    clips, reader = Clips(Manifest.load(root), [Bucket(4, 32, 32)]), Reader([root], deliver)
    data = Loader(batches(6, 4, clips=clips, **how), reader, quarantine or Quarantine())
    return data, lambda item: reader.alone(clips.task(item.row, epoch=item.epoch))


def test_a_batch_has_the_axes_and_types_of_the_model(root):
    data, alone = loader(root, micro=2, rank=1, world=2, seed=3, start=11)
    items, batch = next(iter(data.batch_sampler)), next(iter(data))
    assert (batch["video"].shape, batch["video"].dtype) == ((2, 3, 4, 32, 32), torch.uint8)
    assert np.array_equal(batch["video"][1].permute(1, 2, 3, 0).numpy(), alone(items[1])["video"])
    assert (batch["fps"].tolist(), batch["fps"].dtype) == ([5.0, 5.0], torch.float32)
    assert (batch["position"].tolist(), batch["position"].dtype) == ([2, 3], torch.int64)
    assert batch["key"] == [f"clip{item.row}" for item in items]
    assert batch["caption"] == [f"a red square number {item.row}" for item in items]
    assert batch["step"] == 11
    assert "truth" not in batch


def test_memory_is_pinned_only_where_there_is_a_gpu(root):
    assert next(iter(loader(root)[0]))["video"].is_pinned() == torch.cuda.is_available()


def break_clip(root, key):
    """Overwrite the video of a clip in its shard."""
    manifest = Manifest.load(root)
    row = next(manifest.row(i) for i in range(len(manifest)) if manifest.row(i)["key"] == key)
    with (root / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + 512)
        file.write(bytes(600))


def test_a_clip_that_cannot_be_read_is_replaced_by_the_one_that_the_order_names(root):
    whole = [batch["key"] for batch in islice(loader(root)[0], 6)]
    break_clip(root, "clip3")
    quarantine = Quarantine(root / "quarantine.jsonl")
    data, _ = loader(root, quarantine)
    found = [batch["key"] for batch in islice(data, 6)]
    assert [len(set(one) ^ set(other)) > 0 for one, other in zip(whole, found, strict=True)] == [
        "clip3" in keys for keys in whole
    ]
    assert "clip3" not in {key for keys in found for key in keys}
    ((sample, loss),) = quarantine.losses.items()
    assert (sample.key, loss.reason.partition(":")[0]) == ("clip3", "DecodeError")
    items = [item for batch in islice(data.batch_sampler, 6) for item in batch]
    first = next(item for item in items if item.row == 3)
    assert loss.order == (first.step, first.position)
    stand_ins = (data.batch_sampler.stand_in(first.step, first.position, attempt) for attempt in range(1, 99))
    assert found[first.step][first.position] == next(f"clip{s.row}" for s in stand_ins if s.row != 3)


def test_too_many_of_them_end_the_run(root):
    for number in range(3):
        break_clip(root, f"clip{number}")
    with pytest.raises(QuarantineError, match=r"found 3 samples that cannot be read \(3 DecodeError; 3 shard-00000"):
        list(islice(loader(root, Quarantine(budget=2))[0], 12))


def test_a_shard_that_is_gone_is_not_the_fault_of_its_clips(root):
    data, _ = loader(root)
    (root / "shard-00000.tar").unlink()
    with pytest.raises(OSError, match=r"shard-00000\.tar: found no such file"):
        next(iter(data))


def test_a_shard_that_is_replaced_under_the_run_ends_it_by_a_line(root):
    data, _ = loader(root, Quarantine(budget=5))
    with ShardWriter(root / "other") as writer:
        writer.add("else", *sample(9))
    (root / "other" / "shard-00000.tar").replace(root / "shard-00000.tar")
    with pytest.raises(QuarantineError, match=r"6 ManifestError; 6 shard-00000\.tar\), expected at most 5"):
        next(iter(data))
