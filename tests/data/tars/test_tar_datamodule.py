import json
import os
import re
import time
from itertools import islice
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch

from tests.data.loader.test_datamodule import Recorder
from tests.material.made_clips import moving_square, write_dataset, write_video
from tests.material.plain_tars import by_tarfile, clip, write_tars
from videodiff.data.loader.datamodule import clip_data
from videodiff.data.loader.quarantine import Quarantine, QuarantineError, SampleId
from videodiff.data.order.arithmetic import Mesh
from videodiff.data.samples.indexing import index_tars
from videodiff.data.tars.clips import Decode, Refusals
from videodiff.data.tars.datamodule import Progress, tar_data
from videodiff.text.words import Words


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("tars"), (4, 3, 5), frames=12)


def module(urls, **how):
    how = {"frames": 4, "height": 16, "width": 16, "global_batch": 4, "seed": 3, "shuffle": 8, **how}
    return tar_data(urls=urls, **how)


def batches(data, count, mesh=None):
    mesh = mesh or Mesh()
    found = list(islice(data.stream(mesh, data.accumulate(mesh.world)), count))
    data.teardown("fit")
    return found


def keys(found):
    return [key for batch in found for key in batch["key"]]


def train(data, folder, steps, checkpoint=None, **how):
    model = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
        accumulate_grad_batches=data.accumulate(1), check_val_every_n_epoch=None, val_check_interval=2,
        default_root_dir=folder, **how,
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return model


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_the_clips_that_an_indexed_dataset_gives(tars, tmp_path, workers):
    folder = tmp_path / "indexed"
    folder.mkdir()
    for tar in tars:
        os.link(tar, folder / os.path.basename(tar))
    index_tars(str(folder), workers=1)
    shape = {"frames": 4, "height": 16, "width": 24, "stride": 2, "fixed": True, "global_batch": 4}
    wanted = {}
    for batch in islice(clip_data(root=str(folder), **shape).train_dataloader(), 6):
        wanted |= dict(zip(batch["key"], zip(batch["video"], batch["caption"], batch["fps"], strict=True), strict=True))
    found = batches(module(tars, **shape, num_workers=workers), 3)
    assert sorted(keys(found)) == sorted(wanted) == sorted(f"clip{number}" for number in range(12))
    for batch in found:
        for key, video, caption, fps in zip(batch["key"], batch["video"], batch["caption"], batch["fps"], strict=True):
            assert torch.equal(video, wanted[key][0])
            assert (caption, float(fps)) == (wanted[key][1], float(wanted[key][2]))


def test_the_decoder_of_a_stream_is_the_one_that_is_asked_for(tmp_path):
    # decord cannot open AV1, so with it such a video is refused and named; PyAV reads it.
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    videos = {"av1": write_video(frames, codec="libsvtav1"), "h264": write_video(frames, bf="0")}
    samples = {name: {"txt": b"noise", "mp4": video} for name, video in videos.items()}
    tars = [str(by_tarfile(tmp_path / "a.tar", samples))]
    assert set(keys(batches(module(tars, decoder="pyav"), 2))) == {"av1", "h264"}
    data = module(tars, decoder="decord")
    assert set(keys(batches(data, 2))) == {"h264"}
    ((sample, loss),) = data.quarantine.losses.items()
    assert (sample.key, "data.decoder=pyav reads it" in loss.reason) == ("av1", True)
    with pytest.raises(ValueError, match="decoder: found 'opencv', expected one of pyav, decord"):
        module(tars, decoder="opencv")


def test_keys_that_need_a_manifest_are_refused(tars):
    with pytest.raises(TypeError, match=r"data.stages: found no such key, expected some of buckets, budget"):
        module(tars, stages=[])


def test_windows_are_random_differ_by_epoch_and_do_not_depend_on_workers(tars):
    def starts(workers):
        found = batches(module(tars, num_workers=workers), 6)
        return [(key, video.numpy().tobytes()) for b in found for key, video in zip(b["key"], b["video"], strict=True)]

    here = starts(0)
    assert here == starts(2)
    assert dict(here[:12]) != dict(here[12:])


def test_ranks_with_uneven_tars_make_equal_steps_of_different_clips(tars):
    # Rank 0 has two tars of the first epoch, rank 1 one.
    found = [batches(module(tars), 12, Mesh(rank, 2)) for rank in range(2)]
    for one, other in zip(*found, strict=True):
        assert one["step"] == other["step"]
        assert one["video"].shape == other["video"].shape == (2, 3, 4, 16, 16)
        assert sorted(one["position"].tolist() + other["position"].tolist()) == [0, 1, 2, 3]
    assert keys(found[0]) != keys(found[1])


def test_buckets_take_turns_alike_on_all_ranks_and_each_clip_is_of_its_own(tmp_path):
    rng = np.random.default_rng(0)
    samples = {}
    for number in range(12):
        size = (24, 48) if number % 3 else (32, 32)
        video = rng.integers(0, 255, (8, *size, 3), dtype=np.uint8)
        samples[f"clip{number}"] = {"mp4": write_video(video), "txt": b"noise"}
    urls = [str(by_tarfile(tmp_path / f"{n}.tar", dict(list(samples.items())[4 * n : 4 * n + 4]))) for n in range(3)]
    buckets = [{"frames": 8, "height": 16, "width": 32, "crop": 0.1}, {"frames": 4, "height": 16, "width": 16}]
    data = [module(urls, buckets=buckets) for _ in range(2)]
    assert [round(one.share, 3) for one in data[0].trained] == [round(2 / 3, 3), round(1 / 3, 3)]
    found = [batches(data[rank], 12, Mesh(rank, 2)) for rank in range(2)]
    shapes = [[tuple(batch["video"].shape[2:]) for batch in own] for own in found]
    assert shapes[0] == shapes[1]
    assert shapes[0].count((8, 16, 32)) == 8
    wide = {key for own in found for batch in own if batch["video"].shape[-1] == 32 for key in batch["key"]}
    assert wide == {f"clip{number}" for number in range(12) if number % 3}


def broken_tars(tmp_path):
    samples = {f"clip{number}": clip(number, 12) for number in range(6)}
    samples["clip2"] = {**samples["clip2"], "mp4": samples["clip2"]["mp4"][:100]}
    samples["clip4"] = {"txt": b"no video"}
    return [str(by_tarfile(tmp_path / "a.tar", samples))]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_cost_themselves_and_are_named(tmp_path, workers):
    path = tmp_path / "quarantine.jsonl"
    tars = [*broken_tars(tmp_path), str(tmp_path / "not.tar")]
    (tmp_path / "not.tar").write_bytes(b"not a tar" * 1000)
    data = module(tars, quarantine=str(path), num_workers=workers)
    found = batches(data, 6)
    assert set(keys(found)) == {"clip0", "clip1", "clip3", "clip5"}
    lines = {(line["shard"], line["key"]): line["reason"] for line in map(json.loads, path.read_text().splitlines())}
    assert set(lines) == {(tars[0], "clip2"), (tars[0], "clip4"), (tars[1], "")}
    assert "found txt, expected one of mp4" in lines[tars[0], "clip4"]
    assert "cannot be read from here on" in lines[tars[1], ""]


def test_too_many_bad_samples_end_the_run(tmp_path):
    with pytest.raises(QuarantineError, match=r"found 2 samples that cannot be read .*expected at most 1"):
        batches(module(broken_tars(tmp_path), budget=1), 6)


def test_a_stream_that_never_gives_a_clip_ends_after_some_hundred_samples(tmp_path):
    # The samples examined at the start look usable: decord refuses this codec only when it is asked for frames.
    samples = {
        f"clip{number}": {"mp4": write_video(moving_square(12, seed=number), codec="mpeg4"), "txt": b"a red square"}
        for number in range(6)
    }
    data = module([str(by_tarfile(tmp_path / "a.tar", samples))], decoder="decord")
    data.check()
    with pytest.raises(ValueError, match=r"in a row, expected some: cannot be read 300; .*codec is mpeg4"):
        batches(data, 1)
    assert data.passed == {"cannot be read": 300}


def test_a_long_run_of_samples_that_fit_no_shape_is_said_once_and_ends_after_two_epochs():
    lost, refusals = Quarantine(), Refusals(few=3, many=50)
    lost.add(SampleId("a.tar", "clip0", 0), (0, 0), "found no video")
    said = [refusals.refuse(kind, 0, lost) for kind in ("cannot be read", *["too few frames"] * 4)]
    assert said == ["", "", said[2], "", ""]
    assert said[2] == (
        "data.urls: found no clip so far in 3 samples in a row, expected some: too few frames 2, cannot be read 1; "
        "the first reasons: a.tar: clip0: found no video"
    )
    assert [refusals.refuse("too few frames", epoch, lost) for epoch in (1, 2)] == ["", ""]
    with pytest.raises(ValueError, match="found no clip in 8 samples in a row"):
        refusals.refuse("too few frames", 3, lost)


def test_after_a_clip_only_a_very_long_run_ends_the_stream():
    lost, refusals = Quarantine(), Refusals(few=3, many=50)
    refusals.accept()
    assert not any(refusals.refuse("cannot be read", epoch, lost) for epoch in range(49))
    refusals.accept()
    assert not any(refusals.refuse("cannot be read", None, lost) for _ in range(49))
    with pytest.raises(ValueError, match="found no clip in 50 samples in a row"):
        refusals.refuse("cannot be read", None, lost)


class HangsAtClip3(Decode):
    """Stands for a native decoder that never returns."""

    def __call__(self, task, out):
        while task.members is not None and task.members["txt"] == b"a red square number 3":
            time.sleep(60)
        return super().__call__(task, out)


def test_a_decoder_that_hangs_is_killed_with_its_process(tmp_path):
    # More than a pipe holds, so that whoever sends one to a busy worker waits for it.
    large = {"json": b'{"notes": "' + b"x" * 2_000_000 + b'"}'}
    samples = {f"clip{number}": clip(number, 12) | large for number in range(8)}
    tars = [str(by_tarfile(tmp_path / "a.tar", samples))]
    data = module(tars, num_workers=2, timeout=2.0)
    data.decode = HangsAtClip3(data.buckets)
    # The tar is read three times: each time the clip costs its seconds anew.
    found = keys(batches(data, 4))
    assert "clip3" not in found
    assert len(found) == 16
    ((sample, loss),) = data.quarantine.losses.items()
    assert (sample.shard, sample.key, loss.reason) == (tars[0], "clip3", "timeout: took longer than 2 s")


def test_clips_that_are_too_short_are_passed_over_and_counted(tmp_path, capfd):
    samples = {f"clip{number}": clip(number, 12 if number % 2 else 3) for number in range(6)}
    data = module([str(by_tarfile(tmp_path / "a.tar", samples))], frames=4)
    found = batches(data, 3)
    assert set(keys(found)) == {"clip1", "clip3", "clip5"}
    assert re.search(r"data.urls: samples skipped: too few frames \d+", capfd.readouterr().err)
    (said,) = data.check_captions(SimpleNamespace(unit="tokens"))
    assert said == "data.urls: 3 of 6 examined samples fit no shape; such samples are skipped"


def test_tars_of_nothing_that_can_be_trained_on_are_refused_before_the_first_step(tmp_path):
    short = by_tarfile(tmp_path / "short.tar", {"clip0": clip(0, 3)})
    with pytest.raises(ValueError, match=r"found none of 1 samples with the frames .* expected 4 .*3 frames of 32"):
        module(str(short)).check(1)
    texts = by_tarfile(tmp_path / "texts.tar", {"clip0": {"txt": b"a"}})
    with pytest.raises(ValueError, match=r"found no usable sample in 1 tar; .*texts.tar: clip0 ValueError: found txt"):
        module(str(texts)).check(1)
    with pytest.raises(ValueError, match="global_batch: found 4, expected a multiple"):
        module(str(short)).check(3)


def test_words_that_nobody_knows_beforehand_are_left_out(tars):
    text = Words(vocabulary=["a", "red", "square"], width=4, max_words=4)
    (said,) = module(tars).check_captions(text)
    assert said == "data.urls: captions lose words beyond 3, and unknown ones"
    assert text.fit("a red square number 7") == "a red square"


@pytest.mark.parametrize("kind", ["tars", "manifest"])
def test_validation_is_of_the_first_clips_of_other_tars_or_of_a_dataset(tars, tmp_path, kind):
    if kind == "tars":
        data = module(tars, validation_urls=write_tars(tmp_path, (5,), 12), validation_clips=4)
    else:
        data = module(tars, validation_root=str(write_dataset(tmp_path, 5, 12)), validation_clips=4)
    model = train(data, tmp_path, 4)
    assert [batch["key"] for batch in data.val_dataloader()] == [["clip0", "clip1", "clip2", "clip3"]]
    assert model.validated[-4:] == ["clip0", "clip1", "clip2", "clip3"]
    assert [(one["key"], one["video"].shape) for one in data.examples(2)] == [
        ("clip0", (4, 16, 16, 3)), ("clip1", (4, 16, 16, 3))
    ]  # fmt: skip


def test_a_resumed_run_leaves_out_the_tars_that_were_read_whole_and_says_so(tmp_path, capfd):
    tars = write_tars(tmp_path / "tars", (4, 4, 4, 4), 12)
    of = {f"clip{number}": number // 4 for number in range(16)}

    def fresh():
        return module(tars, shuffle=0)

    train(fresh(), tmp_path, 2)
    state = torch.load(tmp_path / "2.ckpt", weights_only=True)["TarDataModule"]
    ((epoch, done),) = state["done"]
    assert (state["step"], epoch, len(done)) == (2, 0, 2), "eight clips were trained on, those read ahead do not count"
    data = fresh()
    capfd.readouterr()
    model = train(data, tmp_path, 4, tmp_path / "2.ckpt")
    said = capfd.readouterr().err
    told = "not at the exact sample: from epoch 0 on, 2 tars that were read completely are left out (an epoch has 4)"
    assert f"continues at step 2, but {told}, samples of partly read tars" in said
    assert {of[key] for key in trained_keys(model)} == {0, 1, 2, 3} - set(done)


@pytest.mark.parametrize(
    ("done", "said"),
    [
        ({6: [0, 1], 7: [2, 0]}, "from epoch 6 on, 4 tars that were read completely are left out (an epoch has 3)"),
        ({4: []}, "no tar of epoch 4 was read completely, so any of its samples may come again"),
    ],
)
def test_a_resumed_run_counts_the_tars_of_all_epochs_that_have_begun(tars, capfd, done, said):
    data = module(tars)
    data.resumed, data.progress = True, Progress(done)
    data.say_resumed(Mesh())
    assert said in capfd.readouterr().err


def trained_keys(model):
    return [key for _, _, own, _ in model.seen for key in own]


def test_of_another_list_of_tars_nothing_is_left_out(tars):
    data = module(tars)
    data.load_state_dict({"step": 5, "quarantine": [], "tars": "of another list", "done": [[3, [0, 1]]]})
    assert data.progress.done == {4: set()}


def test_ranks_tell_each_other_what_they_have_read():
    progress = Progress({0: {0, 1}, 1: {2}})
    assert progress.merge([{0: [0, 1], 1: [2]}, {0: [2], 2: [1]}], 3) == {1: [2], 2: [1]}
    assert Progress({0: {0}}).merge([{0: [0, 1]}], 2) == {1: []}


def test_the_stream_has_no_length(tars):
    assert not hasattr(module(tars, micro_batch=2).train_dataloader(), "__len__")
