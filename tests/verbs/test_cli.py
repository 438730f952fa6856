"""The command: its help, its answers to mistakes, and every verb once from clips to the report."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import finish, start, tiny
from tests.material import warm
from tests.material.networks.small import MeanColour, save_script
from videodiff import __version__, cli
from videodiff.cli import VERBS
from videodiff.data.video.decode import decode, probe
from videodiff.training.state.checkpoint import latest_checkpoint

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> Path:
    """Return a folder with a run `runs/small` of a few steps, with validation and samples on the way."""
    cwd = tmp_path_factory.mktemp("trained")
    more = [f"data.validation_root={world_dataset}", "data.validation_clips=4", "trainer.val_check_interval=4"]
    more += ["trainer.max_steps=8", "callbacks.samples.every=4", "callbacks.samples.clips=2", "sampler.steps=2"]
    more += ["callbacks.progress.every=2", "trainer.log_every_n_steps=1", "+targets.colour_accuracy=0.95"]
    finish(start("train", "name=small", *tiny(world_dataset), *more, cwd=cwd))
    return cwd


def test_help_names_every_verb(call: Call) -> None:
    status, out, _ = call("--help")
    assert status == 0
    assert all(f"\n  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_its_keys(call: Call, verb: str) -> None:
    status, out, _ = call(verb, "--help")
    assert status == 0
    assert f"videodiff {verb}: {VERBS[verb]}" in out
    own = {"simulate": "clips:", "pack": "source:", "train": "resume:", "sample": "prompts:", "evaluate": "given:"}
    own |= {"inspect": "folder:", "doctor": "folder:", "plan": "clips:"}
    assert own.get(verb, ": ???") in out
    assert "hydra" not in out


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_reader_that_has_seen_enough_ends_no_work(words: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    asked = [sys.executable, "-m", "videodiff", *words]
    done = subprocess.run(asked, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"videodiff {__version__}\n", "")


MISTAKES = {
    "verb": (["trian"], "found the verb 'trian', expected one of simulate, pack, prep, index, cache, plan, train"),
    "key": (["train", "trainer.max_stepz=3"], "found no key 'trainer.max_stepz'; did you mean 'trainer.max_steps'?"),
    "group": (["train", "modle=S"], "found no key 'modle'; did you mean 'model'?"),
    "of_verb": (["sample", "sampler.scale=3.0"], "found no key 'sampler.scale'; did you mean 'scale=3.0'?"),
    "no_option": (["evaluate", "sampler.lead=1"], "'sampler.lead'; did you mean 'sampler=<option> sampler.lead=1'?"),
    "option": (["train", "model=XXL"], "found no model 'XXL', expected one of B, L, S, XL, tiny; did you mean 'XL'?"),
    "key of another group": (["train", "lr=1e-4"], "found no key 'lr'; did you mean 'optimizer.lr'?"),
    "words": (["sample", "guidance_scale=4"], "found no key 'guidance_scale'; did you mean 'scale'?"),
    "no such key": (["train", "schedule.gamma=1"], "found no key 'schedule.gamma', expected one of schedule.warmup,"),
    "no such option": (["train", "schedule=cosine"], "found no schedule 'cosine', expected one of constant, warmup"),
    "key as a flag": (["sample", "--num-frames", "8"], "'--num-frames', expected key=value or one of --help"),
    "missing": (["simulate"], "out"),
    "syntax": (["train", "trainer.max_steps=[3"], "trainer.max_steps=[3"),
    "run": (["report", "nowhere"], "nowhere"),
    "resume": (["train", "resume=nowhere"], "resume: found no nowhere/overrides.yaml"),
    "sample": (["sample", "nowhere"], "run: found no nowhere/config.yaml, expected the folder of a training run"),
    "source": (["pack", "source=nowhere", "out=there"], "nowhere"),
    "clips": (["simulate", "out=there", "clips=0"], "'clips=0': found 0, expected a whole number of at least 1"),
    "size": (["simulate", "out=there", "size=33"], "'size=33': found 33, expected an even number of at least 2"),
    "large frames": (["simulate", "out=there", "size=1000000"], "found 8 frames of 1000000 x 1000000 pixels, which"),
    "many frames": (["simulate", "out=there", "world.frames=10000000000000"], "10,000,000,000,000 frames of 64 x 64 p"),
    "here": (["simulate", "out=.", "clips=1"], "out: . exists already, expected the name of a new folder"),
    "root": (["simulate", "out=/", "clips=1"], "out: / exists already, expected the name of a new folder"),
    "shares": (["simulate", "out=there", "world.balls={1: 0}"], "balls: found {1: 0}, expected shares of 1 to 6 discs"),
    "split": (["simulate", "out=there", "world.split=tests"], "found 'tests', expected one of train, held_out, all"),
    "inspect": (["inspect", "nowhere"], "folder: found no folder nowhere, expected a dataset, a run or a checkpoint"),
    "data": (["train", "data.root=nowhere"], "nowhere: found no such folder, expected a dataset"),
    "nothing": (["train"], "data.root: found nothing, expected data.root=<the name of a file or folder, or a URL>"),
    "flag": (["train", "--multrun"], "found the flag '--multrun', expected key=value or one of --help"),
    "value of a flag": (["train", "--cfg", "jobs"], "--cfg: found 'jobs', expected job, hydra, all"),
    "flag of Hydra": (["train", "--experimental-rerun", "job.pickle"], "it would run code from a file"),
    "sweep": (["train", "data.root=.", "optimizer.lr=1,2"], "found several values, expected one, or --multirun"),
    "one folder for a sweep": (
        ["train", "data.root=.", "name=same", "optimizer.lr=1e-4,1e-3", "seed=0,1", "-m"],
        "run: found runs/same for several jobs of the sweep, expected a folder for each: 'name=${optimizer.lr}_${seed}",
    ),
    "value in a sweep": (["train", "data.root=.", "optimizer.lr=1,-2", "-m"], "'optimizer.lr=-2': found -2, expected"),
    "reference": (["train", "data.root=.", "name=a_${b}"], r"found 'a_${b}', a reference to a missing key"),
    "null": (["train", "data.root=.", "codec=null"], "found null, expected one of pixels, sd_vae, wan_vae"),
    "group taken away": (["train", "data.root=.", "~model"], "override '~model': found nothing, expected an option"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_by_one_line(
    call: Call, mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, wanted = MISTAKES[mistake]
    status, _, err = call(*arguments)
    assert status == 1
    assert wanted in err
    assert err.startswith("videodiff")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("logger", ["wandb", "csv", "[csv,wandb]"])
def test_the_jobs_of_a_sweep_do_not_share_the_id_of_a_tracker(
    call: Call, logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["train", "data.root=.", "--multirun", f"logger={logger}"]
    monkeypatch.setenv("WANDB_RUN_ID", "one4all")
    _, _, err = call(*sweep, "seed=0,1")
    assert ("found 'one4all' for several jobs of the sweep" in err) == (logger != "csv")
    # One job may have it, and without it each job makes its own.
    assert "several jobs" not in call(*sweep, "seed=0")[2]
    monkeypatch.delenv("WANDB_RUN_ID")
    assert "several jobs" not in call(*sweep, "seed=0,1")[2]
    if logger == "wandb":
        assert "found 'mine' for several jobs" in call(*sweep, "logger.wandb.id=mine", "seed=0,1")[2]


RECIPE = """# @package _global_
defaults:
  - override /model: tiny
data: {root: .}
"""
MISTAKES_IN_A_RECIPE = {
    "option": ({"mine": RECIPE}, "mien", "found no experiment 'mien', expected one of bouncing_cpu,"),
    "near option": ({"mine": RECIPE}, "min", "did you mean 'mine'?"),
    "key beside it": ({"mine": RECIPE}, "mine optimizer.lrr=1", "'optimizer.lrr'; did you mean 'optimizer.lr'?"),
    "key": ({"mine": RECIPE + "seeed: 3"}, "mine", "seeed: found no key 'seeed'; did you mean 'seed'?"),
    "key of a part": ({"mine": RECIPE + "trainer: {max_stepz: 3}"}, "mine", "trainer.max_stepz: found no key"),
    "file that names none": ({"mine": RECIPE.replace("/model", "/modl")}, "mine", "Could not override 'modl'"),
    "no package": (
        {"mine": "name: mine"},
        "mine data.root=.",
        "override 'experiment=mine': found a file without the line '# @package _global_', expected it first",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES_IN_A_RECIPE)
def test_a_mistake_in_a_recipe_of_the_user_is_answered_by_one_line(
    call: Call, mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, words, wanted = MISTAKES_IN_A_RECIPE[mistake]
    folder = tmp_path / "my conf, 2026" / "experiment"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    status, _, err = call("train", "--config-dir", str(folder.parent), *f"experiment={words}".split())
    assert (status, err.count("\n")) == (1, 1)
    assert wanted in err


def test_to_simulate_and_to_pack_clips_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nif __name__ == '__main__':\n sys.argv = ['videodiff', *sys.argv[1:]]\n from videodiff import cli\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code + " cli.main()\n print('torch' in sys.modules)\n")
    for words in (["simulate", "world=bouncing", "out=clips", "clips=2"], ["pack", "source=clips", "out=packed"]):
        done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1:] == ["False"], done.stderr
    assert list((tmp_path / "packed").glob("*.tar"))


def test_a_mistake_is_answered_before_anything_large_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['videodiff', *sys.argv[1:]]\nfrom videodiff import cli\ntry:\n cli.main()\nfinally:\n "
    )
    code += "print(sorted({'torch', 'lightning', 'numpy', 'pyarrow'} & set(sys.modules)))"
    for words in (
        ["train", "optimizer.lr=abc", "data.root=."],
        ["sample", "nowhere"],
        ["train", "--cfg", "job"],
        ["-h"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    "words", [["--cfg", "job"], ["--cfg=job"], ["-c", "job"], ["-c=job", "--resolve"]], ids=" ".join
)
@pytest.mark.parametrize("first", [True, False])
def test_flags_of_hydra_stand_anywhere(call: Call, words: list[str], first: bool) -> None:
    overrides = ["experiment=bouncing_cpu", "optimizer.lr=0.125"]
    status, out, err = call("train", *(words + overrides if first else [overrides[0], *words, overrides[1]]))
    assert (status, err) == (0, "")
    assert yaml.safe_load(out)["optimizer"]["lr"] == 0.125


def test_a_part_of_the_configuration_is_shown(call: Call) -> None:
    status, out, _ = call("train", "--package", "optimizer", "--cfg", "job", "data.root=x")
    assert status == 0
    assert set(yaml.safe_load(out.split("\n", 1)[1])) == {"optimizer"} or "lr:" in out


def test_sizes_and_batches_that_do_not_divide_are_named(
    call: Call, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, err = call("train", *tiny(world_dataset), "data.height=18")
    assert "data.height: found 18, expected a multiple of 4 (codec 1 x model.patch 4; nearest: 16)" in err
    odd = "data.buckets=[{frames:1,height:16,width:14}]"
    _, _, err = call("train", *tiny(world_dataset), odd)
    assert "data.buckets[0].width: found 14, expected a multiple of 4" in err
    _, _, err = call("train", *tiny(world_dataset), "trainer.devices=3", "strategy=ddp")
    assert "data.global_batch: found 4, expected a multiple of 3 processes (valid processes: 1, 2, 4)" in err
    shared = ["strategy=ddp", "trainer.devices=16", "strategy.sequence_parallel=16", "model.patch=[2,4,4]"]
    status, _, err = call("train", *tiny(world_dataset), *shared)
    assert status == 1
    told = "strategy.sequence_parallel: found 16 for clips of 8 frames, 4 in the denoiser, expected at most 4"
    assert f"{told} (nearest: 4)" in err


def test_a_micro_batch_is_a_limit_and_the_record_says_what_was_taken(
    call: Call, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["data.global_batch=6", "data.micro_batch=4", "trainer.max_steps=1"]
    status, out, err = call("train", "name=few", *tiny(world_dataset), *few)
    assert status == 0, err
    assert "data.micro_batch: takes 3 at once, not 4: the 6 clips of a process divide by no more" in out
    assert yaml.safe_load((tmp_path / "runs/few/config.yaml").read_text())["data"]["micro_batch"] == 3
    # A resume has the limit again, not what fitted the batch of before.
    overrides = yaml.safe_load((tmp_path / "runs/few/overrides.yaml").read_text())
    assert "data.micro_batch=4" in overrides


def test_a_key_that_the_chosen_schedule_does_not_take_is_named(
    call: Call, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A recipe that sets a key of its own schedule.
    recipe = ["experiment=uniform_gpu", *tiny(world_dataset), "schedule=constant"]
    status, _, err = call("train", *recipe)
    assert status == 1
    assert "schedule.decay: found no key 'schedule.decay'; expected warmup (~schedule.decay removes it)" in err
    status, _, _ = call("train", *recipe, "~schedule.decay", "trainer.max_steps=1")
    assert status == 0


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (["text=t5"], "(~text.width ~text.max_words remove what the recipe sets)"),
        (["text=t5", "schedule=constant"], "(~text.width ~text.max_words ~schedule.decay remove what the recipe sets)"),
        (["objective=latent", "schedule=constant"], "(~schedule.decay removes it)"),
    ],
)
def test_all_that_a_recipe_leaves_over_is_told_at_once(call: Call, chosen: list[str], told: str) -> None:
    words = ["plan", "experiment=uniform_gpu", "model.depth=2", "model.width=64", "model.heads=1", *chosen]
    status, _, err = call(*words)
    assert (status, err.count("\n")) == (1, 1)
    assert told in err
    status, _, err = call(*words, *(word for word in told.strip("()").split() if word.startswith("~")))
    assert status == 0, err


def test_a_reader_may_stop_reading(trained: Path) -> None:
    reader = f"{sys.executable} -m videodiff inspect runs/small | head -n 1"
    done = subprocess.run(["sh", "-c", reader], cwd=trained, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("run ")
    assert done.stderr == ""


def test_a_sweep_runs_its_settings_in_processes_of_their_own(tmp_path: Path, world_dataset: Path) -> None:
    settings = ["name=lr_${optimizer.lr}", "optimizer.lr=1e-3,3e-3", "trainer.max_steps=1", "schedule.warmup=0"]
    said = finish(start("train", *tiny(world_dataset), *settings, "hydra/launcher=local", "--multirun", cwd=tmp_path))
    assert "videodiff train: the jobs print into runs/multirun/local/<job>_0_log.out and .err" in said.splitlines()
    logs = [path.read_text() for path in tmp_path.glob("runs/multirun/local/*_log.out")]
    assert sorted(line for log in logs for line in log.splitlines() if line.startswith("videodiff")) == [
        "videodiff train: 1 step in runs/lr_0.001",
        "videodiff train: 1 step in runs/lr_0.003",
    ]
    assert len(logs) == 2


def test_a_launcher_that_prints_here_is_not_said_to_print_into_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    cli.tell_jobs("train", ["hydra/launcher=basic"])
    assert capfd.readouterr().out == ""


def test_a_run_is_not_overwritten(call: Call, trained: Path, world_dataset: Path, monkeypatch: object) -> None:
    monkeypatch.chdir(trained)
    before = latest_checkpoint(trained / "runs/small").stat().st_mtime_ns
    status, _, err = call("train", "name=small", *tiny(world_dataset))
    assert status == 1
    assert "run: runs/small already holds a run; continue it with resume=runs/small" in err
    assert latest_checkpoint(trained / "runs/small").stat().st_mtime_ns == before


def test_a_run_is_not_continued_as_something_else(call: Call, trained: Path, monkeypatch: object) -> None:
    monkeypatch.chdir(trained)
    status, _, err = call("train", "resume=runs/small", "model.width=32")
    assert status == 1
    assert "model.width: found 32, expected 16 as in runs/small/config.yaml" in err


def test_a_prompt_with_an_unknown_word_is_refused(call: Call, trained: Path, monkeypatch: object) -> None:
    monkeypatch.chdir(trained)
    status, _, err = call("sample", "runs/small", 'prompts=["a large rad ball moves left slowly"]')
    assert status == 1
    assert "found the word 'rad'" in err
    assert "nearest: 'red'" in err


def damage(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the run that may be broken."""
    return Path(shutil.copytree(trained / "runs/small", tmp_path / "broken"))


def test_a_truncated_checkpoint_is_named_with_its_sizes(call: Call, trained: Path, tmp_path: Path) -> None:
    run = damage(trained, tmp_path)
    weights = latest_checkpoint(run) / "average.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[: size // 2])
    status, _, err = call("sample", str(run), 'prompts=["a large red ball moves left slowly"]')
    assert status == 1
    assert f"average.safetensors: found {size // 2} bytes, expected {size} bytes" in err


def test_a_checkpoint_of_another_configuration_is_named_with_its_weight(
    call: Call, trained: Path, tmp_path: Path
) -> None:
    run = damage(trained, tmp_path)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("depth: 2", "depth: 3"))
    status, _, err = call("sample", str(run), 'prompts=["a large red ball moves left slowly"]')
    assert status == 1
    assert "weight denoiser.blocks.2." in err
    assert "another model configuration" in err


def test_samples_are_videos_of_the_trained_size(call: Call, trained: Path, monkeypatch: object) -> None:
    monkeypatch.chdir(trained)
    prompts = 'prompts=["a large red ball moves left slowly", "a small blue ball moves up quickly"]'
    status, out, err = call("sample", "runs/small", prompts, "steps=1", "out=made")
    assert status == 0, err
    info = probe((trained / "made/001.mp4").read_bytes())
    assert (info.width, info.height, info.frames) == (16, 16, 8)
    assert "made/001.mp4: a small blue ball moves up quickly" in out


def test_given_frames_come_back_in_the_sample(
    call: Call, trained: Path, tmp_path: Path, monkeypatch: object, world_dataset: Path
) -> None:
    from videodiff.data.samples.manifest import Manifest
    from videodiff.data.samples.shards import read_sample

    monkeypatch.chdir(trained)
    manifest = Manifest.load(world_dataset)
    video = read_sample(manifest.root, manifest.row(0))["mp4"]
    (tmp_path / "given.mp4").write_bytes(video)
    out = tmp_path / "made"
    status, _, err = call(
        "sample", "runs/small", f"given={tmp_path}/given.mp4", "known=[0,-1]", "steps=1", f"out={out}"
    )
    assert status == 0, err
    made, truth = decode((out / "000.mp4").read_bytes(), range(8)), decode(video, range(8))
    error = abs(made.astype(int) - truth.astype(int)).mean(axis=(1, 2, 3))
    assert error[[0, 7]].max() < 8
    assert error[1:7].min() > 8


def test_evaluation_and_report_follow_a_run(call: Call, trained: Path, monkeypatch: object) -> None:
    monkeypatch.chdir(trained)
    save_script(MeanColour(), trained / "colour.pt")
    how = ["evaluate", "runs/small", "clips=6", "steps=1", "keep=2", "batch=4", f"dataset={data_of(trained)}"]
    status, _, err = call(*how, "metric=[fvd]")
    assert (status, err.count("\n")) == (1, 1)
    assert (
        "metric: found nothing that can be measured: metric.fvd: path: found null, expected a TorchScript file" in err
    )
    own = ["metric=[consistency,captions,physics,fvd,jedi,cdfvd]", "metric.cdfvd.path=colour.pt"]
    status, out, err = call(*how, *own, "metric.cdfvd.resamples=4", "metric.jedi.path=colour.pt")
    assert status == 0, err
    assert "left out: metric.fvd: path: found null, expected a TorchScript file of I3D" in out
    assert "left out: metric.jedi: found 6 clips, expected at least 200; clips=200, or least=6" in out
    result = json.loads((trained / "runs/small/evaluation.json").read_text())
    assert set(result["left_out"]) == {"fvd", "jedi"}
    assert 0 < result["truth_cdfvd"] < result["continuation_cdfvd"] < result["text_to_video_cdfvd"]
    assert "not measured: metric.fvd: path" in (trained / "runs/small/evaluation.md").read_text()
    row = json.loads((trained / "runs/leaderboard.jsonl").read_text())
    assert row["figures"]["velocity_error"] == result["velocity_error"]
    assert (row["run"], row["clips"], row["sampler"]["steps"]) == ("small", 6, 1)
    assert "| text to video cdfvd ↓ |" in (trained / "runs/leaderboard.md").read_text()
    for name in ("colour_accuracy", "direction_accuracy", "count_accuracy", "velocity_error", "velocity_error_static"):
        assert name in result
        assert f"{name}_stderr" in result
    assert result["clips"] == 6
    assert result["velocity_error_constant"] < result["velocity_error_static"]
    assert result["table"][0]["name"] == "model"
    status, _, err = call("report", "runs/small", "hero=hero.png")
    assert status == 0, err
    assert (trained / "hero.png").stat().st_size > 1000
    page = (trained / "runs/small/report.html").read_text()
    assert "data:video/mp4;base64," in page


def test_the_targets_of_a_run_are_of_its_own_validation_clips(call: Call, trained: Path, tmp_path: Path) -> None:
    run, own = damage(trained, tmp_path), Path(data_of(trained))
    how = ["evaluate", str(run), "clips=2", "steps=1", "keep=1", "tasks=[text_to_video]", "metric=[captions]"]
    other = shutil.copytree(own, tmp_path / "other")
    for dataset, applied in ((f"{own.parent}/./{own.name}", True), (str(other), False)):
        status, out, err = call(*how, f"dataset={dataset}")
        assert status == 0, err
        result = json.loads((run / "evaluation.json").read_text())
        assert result["targets"] == ({"colour_accuracy": 0.95} if applied else {})
        assert Path(result["dataset"]) == Path(dataset)
        assert (f"targets: left out, as they are of {own} and not of {other}" in out) is not applied


def test_a_run_without_targets_is_evaluated(call: Call, trained: Path, tmp_path: Path) -> None:
    run = damage(trained, tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["targets"]
    for targets in ({}, None):
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "targets": targets}))
        status, _, err = call(
            "evaluate", str(run), "clips=2", "steps=1", "keep=1", "tasks=[continuation]", f"dataset={data_of(trained)}"
        )
        assert status == 0, err
        assert json.loads((run / "evaluation.json").read_text())["targets"] == {}


def data_of(trained: Path) -> str:
    """Return the dataset that a run was trained on."""
    from videodiff.verbs.config.build import read_run

    return read_run(trained / "runs/small").data.root


def test_inspect_tells_a_dataset_a_run_and_a_checkpoint_apart(call: Call, trained: Path, monkeypatch: object) -> None:
    monkeypatch.chdir(trained)
    assert "clips       24" in call("inspect", data_of(trained))[1]
    assert "step 8" in call("inspect", "runs/small")[1]
    checkpoint = latest_checkpoint(trained / "runs/small")
    assert "whole" in call("inspect", str(checkpoint))[1]


def test_training_leaves_curves_samples_and_validation_by_level(trained: Path) -> None:
    run = trained / "runs/small"
    with next(run.glob("metrics/version_*/metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    rates = {f"train/{rate}" for rate in ("clips_per_s", "tokens_per_s", "mfu", "data_wait", "peak_memory_gib")}
    assert {"train/loss", "val/loss", "val/loss_tau_0.5", "step", *rates} <= rows[0].keys()
    # 8 frames of 16 x 16 pixels in patches of 4 x 4.
    per_clip = [float(row["train/tokens_per_s"]) / float(row["train/clips_per_s"]) for row in rows if row["train/mfu"]]
    assert per_clip == pytest.approx([8 * 4 * 4] * 4, rel=1e-3)
    assert len(list(run.glob("samples/step_00000004/*.mp4"))) == 2
    labels = json.loads((run / "samples/captions.json").read_text())
    assert labels.keys() == {"clip_0", "clip_1"}
    assert labels["clip_0"].endswith("(continued from 3 frames)")
    assert labels["clip_1"].startswith("a ")
    state = json.loads((run / "environment.json").read_text())
    assert state["versions"]["torch"]
    assert "vocabulary" in (run / "config.yaml").read_text()


def test_simulated_clips_pack_into_a_dataset(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("simulate", "out=clips", "clips=3", "size=32", "workers=1")[0] == 0
    (tmp_path / "clips/broken.mp4").write_bytes(b"not a video")
    (tmp_path / "clips/broken.txt").write_text("a red ball moves left")
    status, out, err = call("pack", "source=clips", "out=dataset", "workers=1")
    assert status == 0, err
    assert "3 of 4 clips packed" in out
    assert "broken" in out
    assert "broken" in (tmp_path / "dataset/rejected.jsonl").read_text()
    status, _, err = call("simulate", "out=clips", "clips=3")
    assert status == 1
    assert "clips exists already" in err


def test_torchrun_starts_every_process(tmp_path: Path, world_dataset: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617"]
    recipe = [*tiny(world_dataset), "trainer.max_steps=2", "trainer.devices=2", "strategy=ddp", "name=two"]
    done = warm.run([*command, "-m", "videodiff", "train", *recipe], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert latest_checkpoint(tmp_path / "runs/two").name == "step_00000002"
