"""videodiff inspect of data, and training in stages with images, from the command line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import finish, start, tiny
from tests.material.made_clips import sample, write_dataset
from tests.material.runs.saved_state import tensors_of
from tests.material.servers.loopback import site
from videodiff.data.loader.datamodule import clip_data
from videodiff.data.loader.stream import GlobalBatches
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter, clip_sample, read_captions, read_sample
from videodiff.data.video.decode import probe
from videodiff.data.video.encode import encode
from videodiff.training.state.checkpoint import checkpoints, latest_checkpoint
from videodiff.verbs.inspect import show

Call = Callable[..., tuple[int, str, str]]
LARGE, IMAGE = "{frames:8,height:16,width:16,keep:0.5}", "{frames:1,height:16,width:16}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> Path:
    """Return a dataset of pictures with the captions of the world's clips."""
    root, manifest = tmp_path_factory.mktemp("images") / "dataset", Manifest.load(world_dataset)
    with ShardWriter(root) as writer:
        for number in range(12):
            (caption,) = read_captions(read_sample(manifest.root, manifest.row(number)))
            video = encode(np.full((1, 16, 16, 3), 20 * number, dtype=np.uint8), 25.0)
            writer.add(
                f"image{number}", *clip_sample(video, probe(video), [caption], source="drawn", licence="CC0-1.0")
            )
    return root


def stages(images: Path) -> list[str]:
    """Return the overrides of a run that begins with images and continues with both."""
    return [
        f"data.more=[{{root: {images}}}]",
        f"data.stages=[{{until:3,buckets:[{IMAGE}],weights:[0,1]}},{{until:null,buckets:[{LARGE},{IMAGE}]}}]",
        "data.weights=[0.75,0.25]",
        "data.batch={micro_batches:2,tokens:256}",
    ]


def test_inspect_tells_what_training_takes(call: Call, world_dataset: Path, images: Path) -> None:
    status, out, err = call("inspect", *tiny(world_dataset), *stages(images), "world_size=2")
    assert status == 0, err
    assert re.search(r"^clips +24 in 1 shard,", out, re.MULTILINE)
    assert re.search(r"^clips +12 in 1 shard,", out, re.MULTILINE)
    assert "step 0 on   12 fit 1 x 16 x 16; 0 of 12 fit none" in out
    assert "step 3 on   24 fit 8 x 16 x 16, 36 fit 1 x 16 x 16; 0 of 36 fit none" in out
    assert f"drawn from  {world_dataset} 75.0%, {images} 25.0%" in out
    assert "drawn 100.0%" in out
    assert "2, each with 1 micro-batch a step; valid numbers of them: 1, 2" in out
    # 36 samples an epoch, 27 of them of the videos: half of these are clips.
    table = [line.split() for line in out.splitlines() if re.match(r" *[03]  \d x", line)]
    assert [(row[0], row[1], row[6]) for row in table] == [("0", "1", "12"), ("3", "8", "14"), ("3", "1", "22")]


def test_inspect_draws_the_first_batches_and_measures_the_loader(
    call: Call, world_dataset: Path, tmp_path: Path
) -> None:
    shape = ["data.frames=8", "data.height=16", "data.width=16"]
    status, out, err = call(
        "inspect", f"data={world_dataset}", *shape, f"strips={tmp_path}/a/strips.png", "batches=2", "clips=3",
        "throughput=true", "seconds=1", "data.num_workers=0",
    )  # fmt: skip
    assert status == 0, err
    assert re.search(
        r"throughput +[\d,.]+ clips a second by the loader with 0 workers, \d+% of the [\d,.]+ of bare", out
    )
    picture = Image.open(tmp_path / "a/strips.png")
    # Two steps of three clips, eight frames of 96 pixels each.
    assert picture.size[0] > 8 * 96
    assert picture.size[1] > 6 * 96
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 20
    status, _, err = call("inspect", f"data={world_dataset}", *shape, f"strips={tmp_path}/strips.html", "data.stride=2")
    assert (status, err.count("\n")) == (1, 1)
    assert "bucket 8 x 16 x 16: found no sample that falls into it" in err
    status, _, err = call("inspect", f"data={world_dataset}", *shape, f"strips={tmp_path}/strips.html", "batches=1")
    assert status == 0, err
    page = (tmp_path / "strips.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "frames 0 to 7 of 8" in page


def test_inspect_reads_a_dataset_at_a_url(call: Call, world_dataset: Path, tmp_path: Path) -> None:
    with site(tmp_path) as server:
        shutil.copytree(world_dataset, server.files / "world")
        for arguments in ([f"data={server.url}/world", "data.frames=8"], [f"{server.url}/world"]):
            status, out, err = call("inspect", *arguments)
            assert status == 0, err
            assert re.search(r"^clips +24 in 1 shard,", out, re.MULTILINE)


MISTAKES = {
    "processes": (
        ["world_size=3"],
        "data.batch.micro_batches: found 2, expected a multiple of 3 processes (valid processes: 1, 2)",
    ),
    "rising": (
        [f"data.stages=[{{until:0,buckets:[{IMAGE}]}},{{buckets:[{IMAGE}]}}]"],
        "data.stages[0].until: found 0, expected a whole number of at least 1",
    ),
    "empty": (
        [f"data.stages=[{{until:5,buckets:[{IMAGE}]}},{{buckets:[]}}]"],
        "data.stages[1].buckets: found [], expected a list of at least 1",
    ),
    "nothing fits": (
        ["data.stages=[{buckets:[{frames:9,height:16,width:16}]}]", "data.weights=null"],
        "bucket 9 x 16 x 16: found no sample that falls into it, expected at least one",
    ),
    "weight": (
        ["data.stages=[{buckets:[{frames:8,height:16,width:16}]}]"],
        "data.weights: found 0.25 for dataset 1 from step 0 on, expected 0: none of its samples fits a bucket there",
    ),
    "tokens": (["data.batch={micro_batches:2,tokens:9}"], "batch.tokens: found 9, expected at least"),
    "strips": (["strips=strips.gif"], "strips: found strips.gif, expected a name that ends in .html or .png"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_by_one_line(
    call: Call, world_dataset: Path, images: Path, mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong, message = MISTAKES[mistake]
    status, _, err = call("inspect", *tiny(world_dataset), *stages(images), *wrong)
    assert status == 1
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path, images: Path) -> tuple[Path, str]:
    """Return a folder with the run `whole` of six steps, three of each stage, all checkpoints kept; what it printed."""
    cwd = tmp_path_factory.mktemp("staged")
    kept = ["callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=0"]
    recipe = [*tiny(world_dataset), *stages(images), *kept, "trainer.max_steps=6"]
    return cwd, finish(start("train", "name=whole", *recipe, cwd=cwd))


def test_a_run_in_stages_begins_with_its_plan(staged: tuple[Path, str]) -> None:
    table = [line.split() for line in staged[1].splitlines() if re.match(r" *[03]  \d x", line)]
    assert [(row[0], row[1]) for row in table] == [("0", "1"), ("3", "8"), ("3", "1")]
    assert all(row[-1].endswith("%") for row in table)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_run_in_stages_ends_with_the_same_bits_wherever_it_stopped(
    staged: tuple[Path, str], tmp_path: Path, stop: int
) -> None:
    run = shutil.copytree(staged[0] / "runs/whole", tmp_path / "runs/whole")
    last = latest_checkpoint(run)
    whole = tensors_of(last)
    for checkpoint in checkpoints(run):
        if int(checkpoint.name.removeprefix("step_")) > stop:
            shutil.rmtree(checkpoint)
    # In a process of its own, as the whole run: what other tests have left in this one may change the last bit.
    finish(start("train", "resume=runs/whole", cwd=tmp_path))
    resumed = tensors_of(latest_checkpoint(run))
    assert latest_checkpoint(run).name == last.name == "step_00000006"
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_run_is_not_resumed_in_another_folder_or_on_another_manifest(
    call: Call, world_dataset: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = [*tiny(world_dataset), f"data.buckets=[{IMAGE}]", f"text.vocabulary={world_dataset}/words.txt"]
    assert call("train", "name=one", *one, "trainer.max_steps=1")[0] == 0
    status, _, err = call("train", "resume=runs/one", "run=runs/two", "trainer.max_steps=2")
    assert status == 1
    assert "run: found runs/two beside resume=runs/one, expected no other folder" in err.splitlines()[-1]
    assert not (tmp_path / "runs/two").exists()
    status, _, err = call("train", "resume=runs/one", f"data.root={images}", "trainer.max_steps=2")
    assert status == 1
    assert re.search(r"manifest.parquet: found the manifest \w{12}, expected \w{12} as in the checkpoint", err)
    assert err.splitlines()[-1].startswith("videodiff train: error")


def test_a_run_goes_on_with_other_stages_to_come(
    call: Call, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = [*tiny(world_dataset), f"data.buckets=[{IMAGE}]", f"text.vocabulary={world_dataset}/words.txt"]
    assert call("train", "name=one", *one, "trainer.max_steps=2")[0] == 0
    clips = IMAGE.replace("frames: 1", "frames: 4")
    for until, steps, expected in ((2, 4, 0), (1, 6, 1)):
        stages = f"data.stages=[{{until: {until}, buckets: [{IMAGE}]}}, {{until: null, buckets: [{clips}]}}]"
        status, _, err = call("train", "resume=runs/one", "data.buckets=null", stages, f"trainer.max_steps={steps}")
        assert status == expected, err
    assert "data.stages: found [0, 1], expected [0, 2] as in the checkpoint" in err


def test_a_clip_whose_caption_cannot_be_read_does_not_hide_the_others_of_its_batch(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, count=2)
    shard = root / "shard-00000.tar"
    caption = read_captions(sample(1)[0])[0].encode()
    shard.write_bytes(shard.read_bytes().replace(caption, b"\xe4" + caption[1:]))
    data = clip_data(root=str(root), frames=4, height=16, width=16, global_batch=2)
    step = show(data, GlobalBatches(data.order, data.training), 0, 2)
    assert sorted(clip.frames is None for clip in step.clips) == [False, True]
    (note,) = (clip.note for clip in step.clips if clip.frames is None)
    assert note.startswith(f"cannot be read: {shard}: clip1: ")
