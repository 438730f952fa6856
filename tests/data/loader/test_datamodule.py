import os
import re
import signal
import time
from itertools import islice

import lightning
import pytest
import torch

from tests.material.made_clips import sample, write_dataset
from videodiff.data.loader import datamodule
from videodiff.data.loader.clips import Reader
from videodiff.data.loader.datamodule import clip_data
from videodiff.data.loader.quarantine import QuarantineError
from videodiff.data.order.arithmetic import Mesh
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter
from videodiff.planning.cost import Cost
from videodiff.training.state.progress import counted_anew


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("train"), count=10, frames=12)


@pytest.fixture(scope="module")
def validation_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("validation")
    with ShardWriter(root) as writer:
        for number in range(5):
            writer.add(f"held{number}", *sample(number, 12, truth={"radius": [float(number)], "fps": 5.0}))
    return root


def module(root, **how):
    how = {"frames": 4, "height": 16, "width": 16, "global_batch": 4, "seed": 3, **how}
    return clip_data(root=str(root), **how)


class HangsAtClip3(Reader):
    """Stands for a native decoder that never returns."""

    def __call__(self, task, out, members=None):
        while task.row["key"] == "clip3":
            time.sleep(60)
        return super().__call__(task, out, members)


class Recorder(lightning.LightningModule):
    """Train a single number and note what each batch held."""

    def __init__(self):
        super().__init__()
        self.number, self.seen, self.validated = torch.nn.Parameter(torch.zeros(())), [], []

    def on_load_checkpoint(self, checkpoint):
        checkpoint["loops"]["fit_loop"] = counted_anew(checkpoint, self.trainer.accumulate_grad_batches)

    def training_step(self, batch, index):
        self.seen.append((batch["step"], batch["position"].tolist(), batch["key"], batch["video"].sum().item()))
        return self.number * batch["video"].float().mean()

    def validation_step(self, batch, index):
        self.validated += batch["key"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(data, folder, steps, checkpoint=None, accumulate=2, **how):
    recorder = Recorder()
    trainer = lightning.Trainer(
        max_steps=steps, max_epochs=-1, accumulate_grad_batches=accumulate, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=folder, limit_val_batches=0, **how,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return recorder.seen


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(root, tmp_path):
    straight = train(module(root, micro_batch=2), tmp_path, 5)
    train(module(root, micro_batch=2), tmp_path, 2)
    rest = train(module(root, micro_batch=2, cache_gib=1.0), tmp_path, 5, checkpoint=tmp_path / "2.ckpt")
    assert [step for step, *_ in straight] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert rest == straight[4:]


class Steps(lightning.Callback):
    """Note the step of each micro-batch, and of the optimizer after it; stop after so many micro-batches."""

    def __init__(self, stop=None):
        self.seen, self.stop = [], stop

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.seen.append((batch["step"], trainer.global_step))
        trainer.should_stop |= len(self.seen) == self.stop


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 4)])
@pytest.mark.parametrize("inside", [False, True])
def test_a_step_stays_whole_with_another_number_of_micro_batches_and_after_a_stop_inside_one(
    root, tmp_path, before, after, inside
):
    """The optimizer steps where a global batch ends, not where Lightning's count of the run before says."""
    stop = Steps(stop=3 * before + inside)
    train(module(root, micro_batch=4 // before), tmp_path, 9, accumulate=before, callbacks=[stop])
    reached = stop.seen[-1][1]
    assert reached == 3 + (inside and before == 1)
    steps = Steps()
    how = {"accumulate": after, "checkpoint": tmp_path / "9.ckpt", "callbacks": [steps]}
    train(module(root, micro_batch=4 // after), tmp_path, 7, **how)
    expected = [(step, step + (micro == after - 1)) for step in range(reached, 7) for micro in range(after)]
    assert steps.seen == expected


def test_an_epoch_that_the_trainer_cuts_short_goes_on_where_it_stopped(root, tmp_path):
    straight = train(module(root), tmp_path, 5, accumulate=1)
    cut = train(module(root), tmp_path, 5, accumulate=1, limit_train_batches=2)
    assert cut == straight


def test_the_checkpoint_holds_the_step_that_training_reached(root, tmp_path):
    train(module(root, micro_batch=2), tmp_path, 3)
    state = torch.load(tmp_path / "3.ckpt", weights_only=True)["ClipDataModule"]
    assert {name: state[name] for name in ("step", "seed", "batch_sizes")} == {"step": 3, "seed": 3, "batch_sizes": [4]}
    assert set(state) == {
        "step",
        "left_out",
        "stages",
        "seed",
        "window",
        "buckets",
        "batch_sizes",
        "repeats",
        "fingerprint",
        "datasets",
        "quarantine",
    }


def test_a_trainer_that_accumulates_another_number_of_batches_is_an_error(root, tmp_path):
    with pytest.raises(ValueError, match="accumulate_grad_batches: found 2, expected 4"):
        train(module(root, micro_batch=1), tmp_path, 1)


@pytest.mark.parametrize(
    "wrong",
    [{"seed": 4}, {"batch_sizes": [8]}, {"fingerprint": "another"}, {"datasets": []}, {"window": 2}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_the_state_of_another_stream_is_an_error(root, wrong):
    state = {**module(root).state_dict(), **wrong}
    with pytest.raises(
        ValueError, match=rf"data\.{next(iter(wrong))}: found .* expected {re.escape(repr(wrong.popitem()[1]))}"
    ):
        module(root).load_state_dict(state)


def test_the_state_of_another_manifest_is_an_error_that_names_it(root, validation_root):
    state = module(validation_root).state_dict()
    with pytest.raises(ValueError, match=r"manifest\.parquet: found the manifest \w{12}, expected \w{12} as in the ch"):
        module(root).load_state_dict(state)


def test_the_state_fits_another_micro_batch_and_another_number_of_workers(root):
    data = module(root, micro_batch=1, num_workers=2)
    data.load_state_dict({**module(root).state_dict(), "step": 7})
    assert next(iter(data.train_dataloader().batch_sampler))[0].step == 7


def test_workers_deliver_what_the_main_process_delivers(root):
    plain = list(islice(module(root).train_dataloader(), 3))
    data = module(root, num_workers=2, cache_gib=1.0)
    for batch, expected in zip(islice(data.train_dataloader(), 3), plain, strict=True):
        assert batch["key"] == expected["key"]
        assert torch.equal(batch["video"], expected["video"])
    processes = [worker.process for worker in data.workers.pool]
    data.teardown("fit")
    assert not any(process.is_alive() for process in processes)


def test_workers_that_are_killed_cost_no_clip(root):
    expected = list(islice(module(root).train_dataloader(), 8))
    data = module(root, num_workers=2)
    batches = iter(data.train_dataloader())
    for number, whole in enumerate(expected):
        batch = next(batches)
        assert torch.equal(batch["video"], whole["video"])
        if number % 3 == 1:
            os.kill(data.workers.pool[number % 2].process.pid, signal.SIGKILL)
    assert not data.quarantine.losses
    data.teardown("fit")


def test_a_decoder_that_hangs_costs_its_clip_and_not_the_run(tmp_path, monkeypatch):
    root = write_dataset(tmp_path, count=8, frames=12)
    monkeypatch.setattr(datamodule, "Reader", HangsAtClip3)
    data = module(root, num_workers=2, timeout=2.0)
    keys = [key for batch in islice(data.train_dataloader(), 6) for key in batch["key"]]
    assert "clip3" not in keys
    assert len(keys) == 24
    ((sample, loss),) = data.quarantine.losses.items()
    assert (sample.key, loss.reason) == ("clip3", "timeout: took longer than 2 s")
    data.teardown("fit")


def break_clip(root, number):
    """Overwrite the video of a clip in its shard."""
    row = Manifest.load(root).row(number)
    with (root / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + 512)
        file.write(bytes(600))


def test_a_run_over_broken_clips_goes_on_and_a_resumed_one_sees_the_same(tmp_path):
    root = write_dataset(tmp_path / "set", count=10, frames=12)
    break_clip(root, 4), break_clip(root, 7)
    straight = train(module(root, micro_batch=2), tmp_path, 6)
    train(module(root, micro_batch=2), tmp_path, 3)
    state = torch.load(tmp_path / "3.ckpt", weights_only=True)["ClipDataModule"]
    assert {loss[1] for loss in state["quarantine"]} == {"clip4", "clip7"}
    rest = train(module(root, micro_batch=2, num_workers=1), tmp_path, 6, checkpoint=tmp_path / "3.ckpt")
    assert rest == straight[6:]
    assert not {"clip4", "clip7"} & {key for _, _, keys, _ in straight for key in keys}


def test_a_broken_validation_clip_is_an_error_that_names_it(root, tmp_path):
    held = write_dataset(tmp_path / "held", count=3, frames=12)
    break_clip(held, 1)
    with pytest.raises(QuarantineError, match=r"1 DecodeError.*expected at most 0; the last one: shard-.*clip1"):
        module(root, validation_root=str(held)).val_dataloader()


def test_validation_takes_the_first_clips_in_order_with_their_truth(root, validation_root):
    data = module(root, validation_root=str(validation_root), validation_clips=3, micro_batch=2)
    batches = list(data.val_dataloader())
    assert [batch["key"] for batch in batches] == [["held0", "held1"], ["held2"]]
    assert [truth["radius"] for batch in batches for truth in batch["truth"]] == [[0.0], [1.0], [2.0]]
    assert torch.cat([batch["position"] for batch in batches]).tolist() == [0, 1, 2]


def test_validation_is_the_same_every_time(root, validation_root):
    data = module(root, validation_root=str(validation_root))
    first, second = (next(iter(data.val_dataloader()))["video"] for _ in range(2))
    again = next(iter(module(root, validation_root=str(validation_root), seed=99).val_dataloader()))["video"]
    assert torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.parametrize(("clips", "world", "expected"), [(4, 2, [2, 3]), (5, 2, [0, 1, 2, 3, 4]), (4, 4, [1])])
def test_ranks_share_the_validation_clips_only_where_they_divide(root, validation_root, clips, world, expected):
    data = module(root, validation_root=str(validation_root), validation_clips=clips)
    data._mesh = lambda: Mesh(1, world)
    assert [place for batch in data.val_dataloader() for place in batch["position"].tolist()] == expected


def test_of_a_sequence_group_one_rank_reads_and_all_validate_the_same_clips(root, validation_root):
    read, validated = [], []
    for rank in range(4):
        data = module(root, validation_root=str(validation_root), validation_clips=4, micro_batch=2)
        data.sequence = 2
        data._mesh = lambda rank=rank: Mesh(rank, 4, 2)
        read.append(next(iter(data.train_dataloader())))
        validated.append([p for batch in data.val_dataloader() for p in batch["position"].tolist()])
    assert [bool(batch) for batch in read] == [True, False, True, False]
    assert not set(read[0]["position"].tolist()) & set(read[2]["position"].tolist())
    assert validated == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [data.accumulate(world) for world in (2, 4)] == [data.global_batch // 2, data.global_batch // 4]


def test_the_trainer_validates_and_no_validation_set_is_none(root, validation_root, tmp_path):
    recorder = Recorder()
    data = module(root, validation_root=str(validation_root), micro_batch=4)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.validate(recorder, datamodule=data, verbose=False)
    assert recorder.validated == [f"held{number}" for number in range(5)]
    assert module(root).val_dataloader() == []


def test_check_finds_what_would_fail_later(root, tmp_path):
    module(root).check(world=2)
    with pytest.raises(ValueError, match="expected a multiple of"):
        module(root).check(world=3)
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        module(root, validation_root=str(tmp_path / "none")).check()
    with pytest.raises(ValueError, match="found 12 frames"):
        module(root, frames=13).check()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_workers": -1}, "data.num_workers: found -1, expected at least 0"),
        ({"validation_clips": 0}, "data.validation_clips: found 0, expected at least 1"),
        ({"decoder": "opencv"}, "decoder: found 'opencv', expected one of pyav, decord"),
    ],
)
def test_settings_that_cannot_be_are_an_error(root, wrong, said):
    with pytest.raises(ValueError, match=said):
        module(root, **wrong)


def test_a_key_that_no_record_has_is_an_error(root):
    with pytest.raises(TypeError, match=r"data\.frmaes: found no such key, expected some of .*frames"):
        module(root, frmaes=4)


def test_both_decoders_give_training_the_same_batches(root):
    batches = [next(iter(module(root, decoder=name).train_dataloader())) for name in ("pyav", "decord")]
    assert torch.equal(batches[0]["video"], batches[1]["video"])
    assert batches[0]["key"] == batches[1]["key"]


def test_buckets_and_several_datasets_share_the_steps(root, tmp_path_factory):
    more = write_dataset(tmp_path_factory.mktemp("images"), count=8, frames=1)
    rules = [
        {"frames": 4, "height": 16, "width": 16, "keep": 0.5, "global_batch": 2},
        {"frames": 1, "height": 32, "width": 32, "global_batch": 4},
    ]
    data = module(root, more=[{"root": str(more), "repeat": 2}], buckets=rules)
    steps = int(4 * data.order.stages[0].epoch_steps)
    batches = list(islice(data.train_dataloader(), steps))
    shapes = {tuple(batch["video"].shape) for batch in batches}
    assert shapes == {(2, 3, 4, 16, 16), (4, 3, 1, 32, 32)}
    # An epoch has 10 clips once and 8 images twice; a batch may straddle two epochs, so four of them are counted.
    keys = [key for batch in batches for key in batch["key"]]
    assert abs(len(keys) - 4 * (10 + 2 * 8)) <= 2 * (2 + 4)


IMAGES = [{"frames": 1, "height": 16, "width": 16}]
BOTH = [{"frames": 4, "height": 16, "width": 16}, {"frames": 1, "height": 32, "width": 32}]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("images"), count=8, frames=1, first=50)


def test_stages_follow_one_another_by_step_and_are_resumed_inside_and_across(root, images, tmp_path):
    how = {
        "more": [{"root": str(images)}],
        "stages": [{"until": 3, "buckets": IMAGES, "weights": [0, 1]}, {"until": None, "buckets": BOTH}],
        "weights": [0.5, 0.5],
    }
    straight = train(module(root, **how), tmp_path, 8, accumulate=1)
    keys = {
        number: {key for step, _, keys, _ in straight if (step >= 3) == number for key in keys} for number in (0, 1)
    }
    assert all(int(key.removeprefix("clip")) >= 50 for key in keys[0])
    assert {int(key.removeprefix("clip")) >= 50 for key in keys[1]} == {False, True}
    for stop in (2, 3, 5):
        train(module(root, **how), tmp_path, stop, accumulate=1)
        rest = train(module(root, **how), tmp_path, 8, checkpoint=tmp_path / f"{stop}.ckpt", accumulate=1)
        assert rest == straight[stop:]
    state = torch.load(tmp_path / "5.ckpt", weights_only=True)["ClipDataModule"]
    assert state["step"] == 5
    with pytest.raises(ValueError, match=r"data\.stages: found \[0, 4\], expected \[0, 3\] as in the checkpoint"):
        module(root, **{**how, "stages": [{**how["stages"][0], "until": 4}, how["stages"][1]]}).load_state_dict(state)


def test_a_stage_may_be_added_to_a_run_while_it_has_not_begun(root, tmp_path):
    """Of a run with one shape, and of one with stages: the steps that were taken stay what they were."""
    short = [{"frames": 2, "height": 16, "width": 16}]
    first, last = {"until": 4, "buckets": BOTH[:1]}, {"until": None, "buckets": short}
    one, two = {}, {"stages": [first, {"until": None, "buckets": BOTH[:1]}]}
    longer = {"stages": [{**first, "until": 3}, last]}
    three = {"stages": [first, {"until": 6, "buckets": [{**BOTH[0], "keep": 0.5}, *short]}, last]}
    for before, after in ((one, longer), (two, three)):
        taken = train(module(root, **before), tmp_path, 3, accumulate=1)
        rest = train(module(root, **after), tmp_path, 8, checkpoint=tmp_path / "3.ckpt", accumulate=1)
        assert taken + rest == train(module(root, **after), tmp_path, 8, accumulate=1)
    state = torch.load(tmp_path / "8.ckpt", weights_only=True)["ClipDataModule"]
    with pytest.raises(ValueError, match=r"data\.stages: found \[0, 4\], expected \[0, 4, 6\] as in the checkpoint"):
        module(root, **two).load_state_dict(state)


def test_datasets_of_a_stage_have_their_weights(root, images):
    data = module(root, more=[{"root": str(images)}], weights=[0.25, 0.75], buckets=IMAGES)
    keys = [key for batch in islice(data.train_dataloader(), 40) for key in batch["key"]]
    assert sum(int(key.removeprefix("clip")) >= 50 for key in keys) == 120


def test_batches_follow_from_what_a_clip_costs(root):
    def cost(bucket):
        return Cost(flops=100 * bucket.frames, tokens=bucket.frames * bucket.height // 16)

    data = module(root, buckets=[{**BOTH[0], "keep": 0.5}, BOTH[1]], batch={"micro_batches": 4, "tokens": 8}, cost=cost)
    sizes = [len(batch["key"]) for batch in islice(data.train_dataloader(), 40)]
    assert set(sizes) == {1, 4}
    assert data.order.batch_sizes == [4, 16]
    assert [data.accumulate(world) for world in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(ValueError, match=r"3 processes \(valid processes: 1, 2, 4\)"):
        data.check(world=3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"stages": [{"until": None, "buckets": IMAGES}], "buckets": IMAGES},
            "data.buckets: found both buckets and data.st",
        ),
        ({"weights": [1], "more": [{"root": "x", "repeat": 2}]}, "data.weights: found a repeat in data.more too"),
        (
            {"batch": {"micro_batches": 4, "tokens": 8}, "micro_batch": 2},
            "data.batch: found beside data.micro_batch=2",
        ),
        ({"batch": {"micro_batches": 4}}, "data.batch: found micro_batches, expected tokens too"),
    ],
)
def test_settings_that_contradict_one_another_are_an_error(root, wrong, message):
    with pytest.raises(ValueError, match=message):
        module(root, **wrong)


def test_a_bucket_that_nothing_fits_is_an_error(root):
    with pytest.raises(ValueError, match="expected at least 400 for 400 x 16 x 16"):
        module(root, buckets=[{"frames": 400, "height": 16, "width": 16}]).check()
    with pytest.raises(ValueError, match="bucket 400 x 16 x 16: found no sample that falls into it"):
        module(
            root, buckets=[{"frames": 400, "height": 16, "width": 16}, {"frames": 4, "height": 16, "width": 16}]
        ).check()


def test_a_dataset_with_a_mistyped_key_is_an_error(root):
    with pytest.raises(ValueError, match=r"data\.more\[0\]\.repeats: found no such key, expected some of root, repeat"):
        module(root, more=[{"root": str(root), "repeats": 3}])
    with pytest.raises(ValueError, match=r"data\.more\[0\]: found repeat, expected root too"):
        module(root, more=[{"repeat": 3}])


def test_the_processes_divide_what_the_buckets_have_and_no_batch_that_none_has(root):
    own = [{**BOTH[0], "global_batch": 6}, {**BOTH[0], "frames": 2, "global_batch": 12}]
    data = module(root, buckets=own)
    assert data.accumulate(6) == 1
    with pytest.raises(ValueError, match="global_batch: found 6"):
        data.accumulate(4)
