"""Sampling, evaluation and the samples of a training from the command line: what was trained, whole, made again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from tests.conftest import finish, start, tiny
from tests.material.made_clips import sample
from videodiff import cli
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter, read_sample
from videodiff.data.video.decode import decode, probe, resize
from videodiff.data.video.encode import encode
from videodiff.diffusion.sampler import euler
from videodiff.generation import sampling
from videodiff.generation.sampling import Wanted, sample_each
from videodiff.generation.settings import Generation, clip_noise
from videodiff.parallel.launcher import meeting_port
from videodiff.training.state.checkpoint import checkpoints
from videodiff.verbs.config.build import load_run

Call = Callable[..., tuple[int, str, str]]
KINDS = ("json", "mp4", "poster.png", "sheet.png")
RED, BLUE = "a large red ball moves left slowly", "a small blue ball moves up quickly"


def test_without_validation_the_samples_are_like_training_clips(trained: Path, world_dataset: Path) -> None:
    manifest = Manifest.load(world_dataset)
    captions = [read_sample(manifest.root, manifest.row(row))["txt"].decode() for row in range(3)]
    labels = json.loads((trained / "samples/captions.json").read_text())
    assert list(labels.values()) == [f"{captions[0]} (continued from 3 frames)", captions[1],
                                     f"{captions[2]} (continued from 3 frames)"]  # fmt: skip
    for step in (2, 4):
        clips = sorted((trained / "samples" / f"step_{step:08d}").iterdir())
        assert [clip.name for clip in clips] == ["clip_0.mp4", "clip_1.mp4", "clip_2.mp4"]
        info = probe(clips[0].read_bytes())
        assert (info.frames, info.height, info.width, info.fps) == (4, 16, 16, 2.5)
    given, truth = decode(clips[0].read_bytes(), range(3)), read_sample(manifest.root, manifest.row(0))["mp4"]
    assert abs(given.astype(int) - decode(truth, [0, 2, 4])).mean() < 8
    assert not list(trained.glob("samples/.*"))


def test_samples_that_are_missing_at_the_checkpoint_are_made_again(call: Call, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "killed"))
    before = {clip.name: clip.read_bytes() for clip in (run / "samples/step_00000004").iterdir()}
    # As a process leaves it that is killed at the second clip.
    (run / "samples/step_00000004").rename(run / "samples/.step_00000004.partial")
    (run / "samples/.step_00000004.partial/clip_1.mp4").write_bytes(b"")
    status, _, err = call("train", f"resume={run}", "trainer.max_steps=5")
    assert status == 0, err
    assert {clip.name: clip.read_bytes() for clip in (run / "samples/step_00000004").iterdir()} == before
    assert not list(run.glob("samples/.*"))


def test_frames_of_different_levels_in_one_patch_are_told(call: Call, world_dataset: Path, tmp_path: Path) -> None:
    run, clip = tmp_path / "run", tmp_path / "clip.mp4"
    clip.write_bytes(encode(np.zeros((8, 16, 16, 3), np.uint8), 5.0))

    def told(*how: str) -> list[str]:
        status, out, err = call(*how)
        assert status == 0, err
        names = [
            re.search(r"((\S+, )*\S+): frames of different noise levels share patches of 2", line)
            for line in (out + err).splitlines()
        ]
        return [one for name in names if name for one in name[1].split(", ")]

    train = ["model.patch=[2,4,4]", "trainer.max_steps=1", "callbacks.samples.every=1", "callbacks.samples.clips=2"]
    train += ["sampler.steps=1", "sampler.lead=1", f"run={run}"]
    policies = "objective.levels.policies"
    drawn = [f"{policies}.{name}" for name in ("prefix", "ends", "independent")]
    assert told("train", *tiny(world_dataset), *train) == [*drawn, "sampler.lead"]
    told_whole = told(
        "train", *tiny(world_dataset), *train[:-1], f"run={run}_whole", f"{policies}={{shared: 1, prefix_2: 1}}"
    )
    assert told_whole == ["sampler.lead"]
    how = ["sample", str(run)]
    assert told(*how, f'prompts=["{RED}"]') == ["sampler.lead"]
    assert told(*how, f"given={clip}") == ["known"]
    assert told(*how, f"given={clip}", "known=[0,1]") == []
    assert told(*how, f"given={clip}", "strength=0.5") == []
    long = [f"given={clip}", "known=[0,1]", "frames=10"]
    assert told(*how, *long, "rollout=continue") == []
    assert told(*how, *long, "rollout=continue", "overlap=3") == ["overlap"]
    assert told(*how, *long, "rollout=rolling", "overlap=2") == ["rollout=rolling"]
    evaluate = ["evaluate", str(run), f"dataset={world_dataset}", "clips=1", "metric=[consistency]"]
    assert told(*evaluate) == ["sampler.lead"]
    assert told(*evaluate, "given=3", "tasks=[continuation]") == ["given"]


def test_a_prompt_of_several_lines_is_printed_in_one(call: Call, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(["a large red ball\nmoves left\x1b[2J slowly"]))
    how = [f"prompts={tmp_path / 'list.json'}", f"out={tmp_path / 'made'}", "steps=1"]
    status, out, err = call("sample", str(trained), *how)
    # The escape makes a word that training does not know.
    assert (status, err.count("\n"), "\x1b" in err) == (1, 1, False)
    (tmp_path / "list.json").write_text(json.dumps(["a large red ball\nmoves left slowly"]))
    status, out, err = call("sample", str(trained), *how)
    assert status == 0, err
    assert out.splitlines()[-2:-1] == [rf"{tmp_path / 'made/000.mp4'}: a large red ball\nmoves left slowly"]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("16-mixed", torch.float16),
    ],
)
def test_a_network_computes_in_the_precision_of_its_training(
    precision: str, dtype: torch.dtype, trained: Path, tmp_path: Path
) -> None:
    run, seen = tmp_path / "run", []
    shutil.copytree(trained, run)
    config = OmegaConf.load(run / "config.yaml")
    config.trainer.precision = precision
    OmegaConf.save(config, run / "config.yaml")
    _, model, _ = load_run(run)
    model.denoiser.blocks[0].mlp[0].register_forward_hook(lambda layer, given, made: seen.append(made.dtype))
    (made,) = sample_each(model, Generation(euler, steps=1), [Wanted(RED, 5.0, 0)], (4, 16, 16))
    assert made.shape == (4, 16, 16, 3)
    assert set(seen) == {dtype}


def test_a_sample_has_the_trained_rate_and_makes_itself_again(call: Call, trained: Path, tmp_path: Path) -> None:
    out, prompts = tmp_path / "made", f'prompts=["{RED}","{BLUE}"]'
    for _ in range(2):
        status, _, err = call("sample", str(trained), prompts, "seed=7", "scale=1.5", f"out={out}")
        assert status == 0, err
    assert sorted(path.name for path in out.iterdir()) == [f"{n:03d}.{e}" for n in range(4) for e in KINDS]
    facts = [json.loads((out / f"{number:03d}.json").read_text()) for number in range(4)]
    assert [(one["prompt"], one["seed"]) for one in facts] == [(RED, 7), (BLUE, 8)] * 2
    assert (facts[0]["fps"], facts[0]["step"], facts[0]["sampler"]["scale"]) == (2.5, 4, 1.5)
    assert probe((out / "001.mp4").read_bytes()).fps == 2.5
    one = facts[1]
    again = [f'prompts=["{one["prompt"]}"]', *(f"{name}={one[name]}" for name in ("seed", "fps", "frames", "height"))]
    again += [f"{name}={one['sampler'][name]}" for name in ("steps", "scale", "shift")]
    status, _, err = call("sample", one["run"], f"checkpoint={one['checkpoint']}", *again, f"out={tmp_path / 'again'}")
    assert status == 0, err
    assert (tmp_path / "again/000.mp4").read_bytes() == (out / "001.mp4").read_bytes()


def test_given_frames_are_taken_at_the_rate_of_the_clip(call: Call, trained: Path, tmp_path: Path) -> None:
    # Each frame has a grey of its own.
    frames = np.broadcast_to(np.arange(10, 250, 10, dtype=np.uint8)[:, None, None, None], (24, 16, 24, 3))
    (tmp_path / "given.mp4").write_bytes(encode(frames, 10.0, crf=1))
    given = [f"given={tmp_path / 'given.mp4'}", "known=[0,1,2]"]
    for asked, places in (([], [0, 4, 8]), (["fps=5"], [0, 2, 4]), (["fps=10"], [0, 1, 2])):
        out = tmp_path / f"made{len(list(tmp_path.iterdir()))}"
        status, _, err = call("sample", str(trained), *given, *asked, f"out={out}")
        assert status == 0, err
        made = decode((out / "000.mp4").read_bytes(), range(3)).astype(int)
        assert [round(grey / 10) - 1 for grey in made.mean(axis=(1, 2, 3))] == places
        facts = json.loads((out / "000.json").read_text())
        assert facts["known"] == [0, 1, 2]
        assert facts["given"]["sha256"] == hashlib.sha256((tmp_path / "given.mp4").read_bytes()).hexdigest()
    for wrong, message in (
        (["fps=20"], "has 10 frames a second, expected at least 20"),
        (["fps=0.5"], "has 24 frames, expected at least 41 for the frames [0, 1, 2] of the clip at 0.5 a second"),
        (["known=[0,1,2,3]"], "known: found all 4 frames of the clip"),
    ):
        status, _, err = call("sample", str(trained), *given, *wrong, f"out={tmp_path / 'none'}")
        assert (status, err.count("\n")) == (1, 1)
        assert message in err


def test_other_shapes_are_made_and_said_or_refused(call: Call, trained: Path, tmp_path: Path) -> None:
    how = ["sample", str(trained), f'prompts=["{RED}"]', f"out={tmp_path}"]
    status, out, err = call(*how, "width=24", "frames=6")
    assert status == 0, err
    assert "6 x 16 x 24 is no shape of the training, which had 4 x 16 x 16" in out
    info = probe((tmp_path / "000.mp4").read_bytes())
    assert (info.frames, info.height, info.width) == (6, 16, 24)
    assert "no rate of the training" not in out


def test_rates_that_training_did_not_have_are_told(call: Call, trained: Path, tmp_path: Path) -> None:
    how = ["sample", str(trained), f'prompts=["{RED}"]', f"out={tmp_path}"]
    told = "frames a second is no rate of the training, which had 2.5"
    for more, lines in (
        (["fps=10"], [f"fps: 10 {told}"]),
        # Of windows of 4 frames every third one is made first.
        (["seconds=3", "rollout=keys"], [f"rollout=keys: 0.833333 {told}"]),
        (["seconds=3"], []),
    ):
        status, out, err = call(*how, *more)
        assert status == 0, err
        assert [line for line in out.splitlines() if "no rate" in line] == lines


def test_every_mode_keeps_what_is_given_to_the_bit(call: Call, trained: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("first", "last"):
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    first, last = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("first", "last"))
    out, pair = tmp_path / "out", f"given=[{tmp_path}/first.png,{tmp_path}/last.png]"
    one, prompt = f"given={tmp_path}/first.png", f'prompts=["{RED}"]'
    modes = ([one], [pair, "known=[0,-1]"], [one, "strength=0.5"], [one, f"mask={tmp_path}/mask.png"])
    guided = ["rescale=0.5", "history=2", "reconstruction=0.1", "interval=[0.1,0.9]", "scale=2", "steps=2"]
    for mode in modes:
        status, _, err = call("sample", str(trained), prompt, *mode, *guided, "lossless=true", f"out={out}")
        assert status == 0, err
    made = [np.load(out / f"{number:03d}.npy") for number in range(4)]
    assert np.array_equal(made[0][0], first)
    assert np.array_equal(made[1][[0, -1]], np.stack([first, last]))
    assert np.array_equal(made[3][:, mask == 0], np.repeat(first[mask == 0][None], 4, 0))
    assert not np.array_equal(made[3][:, mask > 0], np.repeat(first[mask > 0][None], 4, 0))
    status, _, err = call("sample", str(trained), pair, "known=[-1,0]", f"out={tmp_path / 'turned'}", "lossless=true")
    assert status == 0, err
    assert np.array_equal(np.load(tmp_path / "turned/000.npy")[[-1, 0]], np.stack([first, last]))
    # What the JSON says makes the clip again: the pictures in their order, each with its frame.
    turned = json.loads((tmp_path / "turned/000.json").read_text())
    assert turned["known"] == [3, 0]
    assert [Path(one["path"]).stem for one in turned["given"]] == ["first", "last"]
    for wrong, message in (
        ([one, "start=1"], "start: found 1 with pictures alone in given=, expected a video"),
        ([pair, "known=[0,0]"], "known: found [0, 0] for pictures, expected each frame once"),
        ([pair, "strength=0.5"], "given: found 2 files, expected one for strength= and mask="),
        ([prompt, "seconds=6", "batch=2"], "batch: found 2 with a rollout, expected 1"),
    ):
        status, _, err = call("sample", str(trained), *wrong, f"out={tmp_path / 'none'}")
        assert (status, err.count("\n")) == (1, 1), err
        assert message in err
    facts = [json.loads((out / f"{number:03d}.json").read_text()) for number in range(4)]
    assert [one["known"] for one in facts] == [[0], [0, 3], None, None]
    assert facts[2]["strength"] == 0.5
    assert facts[3]["mask"]["sha256"] == hashlib.sha256((tmp_path / "mask.png").read_bytes()).hexdigest()
    assert facts[0]["sampler"]["rescale"] == 0.5
    assert facts[0]["frames_sha256"] == hashlib.sha256(made[0].tobytes()).hexdigest()


def test_a_clip_is_the_same_whatever_is_sampled_beside_it(call: Call, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([{"prompt_en": RED}, {"prompt_en": BLUE}]))
    status, _, err = call("sample", str(trained), f"prompts={tmp_path}/list.json", "samples=2", f"out={tmp_path}/all")
    assert status == 0, err
    facts = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("all/*.json"))]
    assert [(one["prompt"], one["seed"]) for one in facts] == [(RED, 0), (RED, 1), (BLUE, 2), (BLUE, 3)]
    status, _, err = call("sample", str(trained), f'prompts=["{BLUE}"]', "seed=2", f"out={tmp_path}/one")
    assert status == 0, err
    alone = json.loads((tmp_path / "one/000.json").read_text())
    assert alone["frames_sha256"] == facts[2]["frames_sha256"]
    sums = []
    # In batches of three, the clip stands in the first batch, in the second, and beside copies of itself.
    last = "the network makes the last one"
    spares = (f"2 clips: {last} 1 time more", "", f"1 clip: {last} 2 times more")
    for more, number, spare in zip(([RED, BLUE], [RED, RED, RED, BLUE], [BLUE]), (1, 3, 0), spares, strict=True):
        prompts, out = ",".join(f'"{prompt}"' for prompt in more), tmp_path / f"batch{number}"
        how = [f"prompts=[{prompts}]", f"seed={2 - number + 10}", "batch=3", f"out={out}"]
        status, said, err = call("sample", str(trained), *how)
        assert status == 0, err
        told = [line for line in said.splitlines() if "batch: found" in line]
        assert told == [f"batch: found 3 for {spare}"] * bool(spare)
        made = json.loads((out / f"{number:03d}.json").read_text())
        assert (made["prompt"], made["seed"], made["batch"]) == (BLUE, 12, 3)
        sums.append(made["frames_sha256"])
    assert len(set(sums)) == 1


def test_processes_of_torchrun_share_the_clips_and_change_none(trained: Path, tmp_path: Path) -> None:
    arguments = ["sample", str(trained), f'prompts=["{RED}","{BLUE}","{RED}"]', "steps=1", "width=24"]
    found = {}
    # Of four processes one has nothing to do.
    for world in (1, 4):
        port, out = meeting_port(), tmp_path / str(world)
        ranks = []
        for rank in range(world):
            env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            ranks.append(start(*arguments, f"out={out}", cwd=tmp_path, env=env))
        said = "".join(finish(rank) for rank in ranks)
        assert said.count("4 x 16 x 24 is no shape of the training") == 1
        found[world] = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    assert len(found[1]) == 3
    assert found[1] == found[4]


def test_a_long_clip_is_made_window_by_window_and_measured(call: Call, trained: Path, tmp_path: Path) -> None:
    how = ["sample", str(trained), f'prompts=["{RED}"]', "seconds=6", "drift=true"]
    later = [f'captions={{2: "{BLUE}"}}', "rollout_caption=guide"]
    status, out, err = call(*how, *later, f"out={tmp_path}/long")
    assert status == 0, err
    assert "15 frames are more than the 4 of a window: made by rollout=continue" in out
    found = json.loads((tmp_path / "long/evaluation.json").read_text())
    assert (found["frames"], found["seconds"], len(found["by_second"])) == (15, 6.0, 6)
    assert {"count_accuracy", "colour_accuracy", "peak_memory_gib"} <= found.keys()
    facts = json.loads((tmp_path / "long/000.json").read_text())
    how = {"kind": "continue", "window": 4, "total": 15, "overlap": 3, "held": 0.02}
    assert facts["rollout"] == how | {"later": [[5, BLUE]], "after": "guide"}
    assert probe((tmp_path / "long/000.mp4").read_bytes()).frames == 15


def test_pictures_have_no_frame_to_go_on_from(call: Call, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    shapes = json.loads((run / "trained.json").read_text())
    (run / "trained.json").write_text(json.dumps([{**one, "frames": 1} for one in shapes]))
    for more in ([], ["rollout=keys", f'captions={{1: "{BLUE}"}}']):
        status, _, err = call("sample", str(run), f'prompts=["{RED}"]', "seconds=2", *more)
        assert (status, err.count("\n")) == (1, 1)
        assert "rollout: found a window of 1 frame, expected more: it has none to go on from" in err


def test_settings_that_change_nothing_are_told(call: Call, trained: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "first.png")
    asked = ["history=2", "history_level=0.5", "reconstruction=1", "rescale=0.5", "interval=[0.1,0.9]", "scale=1"]
    asked += ["history_noise=0.1", "rollout_caption=tell"]
    told = {}
    for name, more in (("alone", []), ("long", ["seconds=3", "scale=2"]), ("given", [f"given={tmp_path}/first.png"])):
        status, out, err = call("sample", str(trained), f'prompts=["{RED}"]', *asked, *more, f"out={tmp_path}/{name}")
        assert status == 0, err
        told[name] = [line.partition(":")[0] for line in out.splitlines() if "which changes nothing" in line]
    single = ["rollout_caption", "history_noise"]
    assert told["alone"] == ["interval", "rescale", "history", "history_level", "reconstruction", *single]
    assert told["long"] == ["reconstruction"]
    assert told["given"] == ["interval", "rescale", "reconstruction", *single]
    alone = call("sample", str(trained), f'prompts=["{RED}"]', "guide=history", f"out={tmp_path}/alone")[1]
    assert "guide: found history, which changes nothing: no frame is known" in alone
    long = call("sample", str(trained), f'prompts=["{RED}"]', "guide=history", "seconds=3", f"out={tmp_path}/alone")[1]
    assert "guide: found history, which changes nothing: rollout_caption= says what guides later windows" in long
    asked = [f"given={tmp_path}/first.png", "guide=history", "scale=2", "history_level=0.5", "rescale=0.5"]
    guided = call("sample", str(trained), f'prompts=["{RED}"]', *asked, f"out={tmp_path}/given")[1]
    lines = [line for line in guided.splitlines() if "changes nothing" in line]
    assert lines == ["rescale: found 0.5, which changes nothing: guide=history: no caption guides"]
    # The frames have a scale of their own, or nothing has a caption.
    prompt, one = f'prompts=["{RED}"]', f"given={tmp_path}/first.png"
    for more, why in (
        ([prompt, "guide=history", "history=3"], "the frames guide by history=3"),
        (["strength=0.5"], "there is no prompt"),
        (["seconds=3"], "there is no prompt"),
        (["guide=history"], None),
        (["seconds=3", "rollout_caption=tell"], None),
        (["seconds=3", f'captions={{1: "{RED}"}}'], None),
    ):
        out = call("sample", str(trained), one, "scale=2", *more, f"out={tmp_path}/given")[1]
        lines = [line for line in out.splitlines() if "changes nothing" in line]
        assert lines == ([f"scale: found 2, which changes nothing: {why}"] if why else []), more


def test_the_drift_of_several_clips_is_that_of_each_and_their_mean(call: Call, trained: Path, tmp_path: Path) -> None:
    prompts = f'prompts=["{RED}","{BLUE}"]'
    status, _, err = call("sample", str(trained), prompts, "drift=true", f"out={tmp_path}/out")
    assert status == 0, err
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [(one["clip"], one["prompt"]) for one in found["clips"]] == [("000.mp4", RED), ("001.mp4", BLUE)]
    sharpness = [one["last_sharpness_ratio"] for one in found["clips"]]
    assert found["last_sharpness_ratio"] == pytest.approx(sum(sharpness) / 2)
    assert sharpness[0] != sharpness[1]


def test_a_long_clip_begins_with_given_frames_of_its_first_window(call: Call, trained: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16, 3), 77, np.uint8)).save(tmp_path / "first.png")
    how = ["sample", str(trained), f"given={tmp_path}/first.png", "seconds=4", f"out={tmp_path}/out"]
    status, _, err = call(*how, "lossless=true")
    assert status == 0, err
    made = np.load(tmp_path / "out/000.npy")
    assert made.shape == (10, 16, 16, 3)
    assert (made[0] == 77).all()
    for wrong, message in (
        (["known=[-1]"], "known: found [-1] with rollout=continue, expected frames of the first window, from 0 on"),
        (["known=[1]", "rollout=keys"], "known: found [1] with rollout=keys, expected [0]"),
        (["strength=0.5"], "rollout: found continue with strength= or mask=, expected one window of frames="),
        (
            ["history=2", "history_level=0.3", "history_noise=0.3"],
            "history_level: found 0.3 with history_noise=0.3, expected more: guidance pushes away",
        ),
        # Windows of 4 keys, 3 frames apart.
        (
            [f'captions={{2: "{BLUE}"}}', "rollout=keys"],
            "captions: found the seconds 2 with rollout=keys, which can take them up at 4.8, expected that within 4 s",
        ),
        # At 2.5 frames a second, these three are of frames 3, 3 and 10 of 0 to 9.
        (
            ['captions={1.1: "a", 1.3: "b"}'],
            "captions: found the seconds 1.1, 1.3, expected each in a frame of its own",
        ),
        (['captions={3.9: "a"}'], "captions: found the seconds 3.9, expected some from 0.4 to 3.6, the last frame"),
    ):
        status, _, err = call(*how, *wrong)
        assert (status, err.count("\n")) == (1, 1)
        assert message in err


def test_each_verb_says_which_of_its_own_keys_need_less_memory(
    call: Call, trained: Path, world_dataset: Path, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "memory", lambda: 0)
    training = [*tiny(world_dataset), "data.frames=4", "callbacks.samples.every=1", "callbacks.samples.clips=1"]
    for words, advice in (
        (
            ["sample", str(trained), f'prompts=["{RED}"]'],
            "fewer frames=, a smaller height= and width=, or a smaller batch= need less",
        ),
        (["evaluate", str(trained), f"dataset={world_dataset}", "clips=1"], "a smaller batch= needs less"),
        (["train", *training], "fewer callbacks.samples.clips or callbacks.samples.prompts need less"),
    ):
        status, _, err = call(*words)
        assert status == 1
        found = f"videodiff {words[0]}: error: memory: found too little for a clip of 4 frames of 16 x 16 pixels, "
        assert err.strip().splitlines()[-1] == f"{found}expected room for all of it; {advice}"


def test_a_sample_that_is_not_finite_costs_itself_and_is_told(
    call: Call, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noise(shape: tuple[int, ...], seeds: list[int]) -> Tensor:
        return clip_noise(shape, seeds) * (float("nan") if seeds == [1] else 1.0)

    monkeypatch.setattr("videodiff.generation.sampling.clip_noise", noise)
    status, out, err = call("sample", str(trained), f'prompts=["{RED}"]', "samples=3", f"out={tmp_path}/out")
    assert (status, err.count("\n")) == (1, 1)
    assert "1 of 3 clips were not written" in err
    assert f"sample of seed 1 ({RED!r}): found 3,072 of 3,072 values that are not finite" in out
    assert sorted(path.name for path in tmp_path.glob("out/*.mp4")) == ["000.mp4", "002.mp4"]


MISTAKES = {
    "height=18": "height: found 18, expected a multiple of 4 (codec 1 x model.patch 4; nearest: 16)",
    "height=0": "'height=0': found 0, expected a whole number of at least 1",
    "frames=0": "'frames=0': found 0, expected a whole number of at least 1",
    "frames=-4": "'frames=-4': found -4, expected a whole number of at least 1",
    "fps=0": "'fps=0': found 0, expected a number from 0.001 to 500",
    "steps=0": "'steps=0': found 0, expected a whole number from 1 to 100000",
    "strength=0": "'strength=0': found 0, expected a number of at most 1 and above 0",
    "strength=0.5": "strength: found 0.5 without given=, expected a video or a picture",
    "known=[0]": "known: found [0] without given=",
    "rescale=2": "'rescale=2': found 2",
    "history_noise=1": "'history_noise=1': found 1",
    "seconds=0": "'seconds=0': found 0",
    "seconds=0.001": "seconds: found 0.001, expected at least 0.4, one frame at 2.5 a second",
    "rollout=slide": "'rollout=slide': found 'slide', expected one of continue, rolling, keys",
    "rollout=rolling": "rollout: found rolling without a length, expected seconds= or frames=",
    "rollout_caption=never": "'rollout_caption=never': found 'never', expected one of guide, tell, drop",
    'captions={2: "a red ball"}': "captions: found {2: 'a red ball'} without a rollout, expected seconds=",
    "samples=0": "'samples=0': found 0",
    "steps=10000000000": "'steps=10000000000': found 10000000000, expected a whole number from 1 to 100000",
    "start=2": "start: found 2 without given=, expected a video or a picture",
    "window=8": "window: found 8 without a rollout, expected rollout= or seconds=",
    "overlap=2": "overlap: found 2 without a rollout, expected rollout= or seconds=",
    f"seed={2**63 - 1} samples=2": f"seed: found {2**63 - 1} for 2 clips, expected at most {2**63 - 2}",
    "samples=100000000000000000000": "seed: found 0 for 100000000000000000000 clips, expected fewer clips",
    "shift=0": "'shift=0': found 0, expected a number above 0",
    f'prompts=["{RED}","a large rad ball"]': "prompts[1]: caption 'a large rad ball': found the word 'rad'",
    "checkpoint=nowhere": "checkpoint: found no checkpoint.json in nowhere, expected one of ",
    "fps=1e-9": "'fps=1e-9': found 1e-09, expected a number from 0.001 to 500",
    'captions={1: "a", 1.0: "b"}': "found the key 1 and 1.0, expected each key once",
    "prompts=": "prompts: found none, expected for example prompts=",
    "batch=0": "'batch=0': found 0, expected a whole number of at least 1",
    "seconds=3 window=100000000 overlap=99999999": "memory: found too little for a clip of 100,000,000 frames of 16",
    "dimensions=[color]": "dimensions: found ['color'], expected none, or VBench's list in JSON",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_written(
    call: Call, trained: Path, tmp_path: Path, mistake: str
) -> None:
    prompts = [] if mistake.startswith("prompts") else [f'prompts=["{RED}"]']
    words = mistake.split() if mistake.startswith(("seed", "seconds=3")) else [mistake]
    status, _, err = call("sample", str(trained), *prompts, *words, f"out={tmp_path / 'made'}")
    assert (status, err.count("\n")) == (1, 1), err
    assert MISTAKES[mistake] in err
    assert not (tmp_path / "made").exists()


def test_a_caption_that_is_too_long_is_found_before_the_first_step(call: Call, tmp_path: Path) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    with ShardWriter(root) as writer:
        for number in range(4):
            writer.add(f"clip{number}", *sample(number, captions=(" ".join(["many"] * (40 if number == 2 else 2)),)))
    how = ["train", *tiny(root), "trainer.max_steps=1", f"run={run}", "callbacks.samples.every=1", "sampler.steps=1"]
    status, out, err = call(*how)
    assert (status, err.count("\n")) == (1, 1), err
    assert f"{root}: clip2: caption has 40 words, expected at most 24" in err
    assert not run.exists()
    assert "stops: " in call("inspect", *tiny(root))[1]
    status, out, err = call(*how, "text.long=cut")
    assert status == 0, err
    assert f"videodiff train: {root}: 1 clip has a caption of more than 24 words, which is cut" in out
    status, _, err = call(*how, "text.max_words=null", f"run={run}_null")
    assert status == 0, err
    assert "max_words: 41" in Path(f"{run}_null/config.yaml").read_text()
    status, _, err = call("train", f"resume={run}_null", "trainer.max_steps=2", "text.long=cut")
    assert status == 0, err
    assert len(checkpoints(Path(f"{run}_null"))) == 2


def test_words_of_further_datasets_are_known_and_those_of_validation_left_out(
    call: Call, world_dataset: Path, tmp_path: Path
) -> None:
    roots = {}
    for name in ("more", "held"):
        roots[name] = tmp_path / name
        with ShardWriter(roots[name]) as writer:
            for number in range(2):
                writer.add(f"{name}{number}", *sample(number, captions=(f"a red {name} ball",)))
    how = [*tiny(world_dataset), f"data.more=[{{root: {roots['more']}}}]", f"data.validation_root={roots['held']}"]
    how += ["trainer.max_steps=2", "trainer.val_check_interval=1", f"run={tmp_path / 'run'}", "sampler.steps=1"]
    status, out, err = call("train", *how, "callbacks.samples.every=2", f'callbacks.samples.prompts=["{RED}"]')
    assert status == 0, err
    assert "2 of 2 captions are longer than 24 words or have words that training does not know (held), left out" in out
    assert json.loads((tmp_path / "run/samples/captions.json").read_text()) == {"clip_0": RED}
    status, _, err = call("sample", str(tmp_path / "run"), 'prompts=["a red more ball"]')
    assert status == 0, err
    status, _, err = call("train", *how, f"run={tmp_path / 'other'}", f"text.vocabulary={world_dataset}/words.txt")
    assert status == 1
    assert re.search(rf"{roots['more']}: more0: caption 'a red more ball': found the word 'more'.*; more1 too", err)


def test_clips_of_several_rates_are_sampled_at_one_that_is_asked_for(call: Call, tmp_path: Path) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    with ShardWriter(root) as writer:
        for number, fps in enumerate((5.0, 20.0)):
            video = encode(np.full((8, 16, 16, 3), 60, dtype=np.uint8), fps)
            writer.add(f"clip{number}", {"mp4": video, "txt": b"grey"},
                       {"width": 16, "height": 16, "frames": 8, "fps": fps})  # fmt: skip
    assert call("train", *tiny(root), "trainer.max_steps=1", f"run={run}")[0] == 0
    status, _, err = call("sample", str(run), "prompts=[grey]", "steps=1")
    assert (status, err.count("\n")) == (1, 1)
    assert "fps: found null, expected frames a second, as this run was trained on clips of" in err
    assert "5 (50%)" in err
    assert err.endswith(("; ask for one: fps=5\n", "; ask for one: fps=10\n"))
    (tmp_path / "given.mp4").write_bytes(encode(np.full((8, 16, 16, 3), 60, dtype=np.uint8), 12.0))
    for asked, rate in ((["fps=20"], 20), ([f"given={tmp_path / 'given.mp4'}"], 12)):
        status, out, err = call("sample", str(run), "prompts=[grey]", "steps=1", *asked)
        assert status == 0, err
        assert probe(Path(out.split(":")[0]).read_bytes()).fps == rate


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a step in the latents of a small causal autoencoder, 9 frames to 3; and its dataset beside it."""
    import diffusers
    import torch

    cwd = tmp_path_factory.mktemp("causal")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                                     latents_mean=[0.0] * 4, latents_std=[1.0] * 4)  # fmt: skip
    vae.save_pretrained(cwd / "vae")
    with ShardWriter(cwd / "data") as writer:
        for number in range(4):
            writer.add(f"clip{number}", *sample(number, 9, captions=("a square",)))
    how = ["codec=wan_vae", f"codec.path_or_name={cwd / 'vae'}", "codec.subfolder=null", "codec.dtype=float32"]
    how += ["data.frames=9", "model.patch=[1,1,1]", "trainer.max_steps=1", "sampler.steps=1"]
    how += ["callbacks.samples.every=1", f"run={cwd / 'run'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["videodiff", "train", *tiny(cwd / "data"), *how])
        GlobalHydra.instance().clear()
        cli.main()
    return cwd


def test_a_causal_codec_is_given_the_frames_that_it_can_hold_everywhere(call: Call, causal: Path) -> None:
    run, data = causal / "run", causal / "data"
    labels = json.loads((run / "samples/captions.json").read_text())
    # Of three frames a causal codec of 1 + 4 k can hold one.
    assert labels["clip_0"] == "a square (continued from 1 frame)"
    manifest = Manifest.load(data)
    video = read_sample(manifest.root, manifest.row(0))["mp4"]
    (causal / "given.mp4").write_bytes(video)
    status, _, err = call("sample", str(run), f"given={causal / 'given.mp4'}", "known=[0,1,2,3,4]")
    assert status == 0, err
    made = decode((run / "generated/000.mp4").read_bytes(), range(9)).astype(int)
    error = abs(made - resize(decode(video, range(9)), 16, 16)).mean(axis=(1, 2, 3))
    assert error[:5].max() < 10 < error[5:].min()
    fits = "expected the first 1, 5 of the clip's 9 frames: the codec AutoencoderKLWan"
    for wrong in ("[0,-1]", "[0,1,2]", "[1]"):
        status, _, err = call("sample", str(run), f"given={causal / 'given.mp4'}", f"known={wrong}")
        assert (status, err.count("\n")) == (1, 1)
        assert fits in err
    # Of 1 + 4 k frames, six are cut from nine.
    how = ['prompts=["a square"]', "fps=6", "seconds=1"]
    status, out, err = call("sample", str(run), *how, f"out={causal / 'short'}")
    assert status == 0, err
    assert "6 frames are fewer than the 9 of a window: made by rollout=continue" in out
    assert probe((causal / "short/000.mp4").read_bytes()).frames == 6
    # A clip of one latent, then the others around it.
    leads = ["sampler=euler", "sampler.steps=1", "sampler.lead=1", "sampler.apart=true"]
    status, _, err = call("sample", str(run), *how[:1], *leads, f"out={causal / 'led'}")
    assert status == 0, err
    assert probe((causal / "led/000.mp4").read_bytes()).frames == 9
    status, _, err = call("evaluate", str(run), f"dataset={data}", "clips=2")
    assert status == 0, err
    assert json.loads((run / "evaluation.json").read_text())["given_frames"] == 1
    status, _, err = call("evaluate", str(run), f"dataset={data}", "clips=2", "given=3")
    assert (status, err.count("\n")) == (1, 1)
    assert f"given: found 3, {fits}" in err
    status, _, err = call("train", f"resume={run}", "trainer.max_steps=2", "callbacks.samples.given=9")
    assert status == 1
    assert f"callbacks.samples.given: found 9, {fits}" in err
