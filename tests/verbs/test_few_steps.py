"""Few steps from the command line: a trained run becomes a flow map, or the teacher of a run with half the steps."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks
from videodiff import cli
from videodiff.data.video.decode import decode
from videodiff.report.run import read_run
from videodiff.training.state.checkpoint import AVERAGE, latest_checkpoint

Call = Callable[..., tuple[int, str, str]]
NEW = "fresh=[denoiser.*step.*]"
MAP = ["objective=flow_map", "objective.prediction=x", "model.step_rank=4", NEW]
# With each of them blocks are whole only while they work, or a clip lies in two processes.
SHARED = {
    "fsdp2": ["strategy=fsdp2", "recompute=full", "compile=blocks", "compile.backend=aot_eager"],
    "zero3": ["strategy=zero3"],
    "sequence": ["strategy=ddp", "strategy.sequence_parallel=2"],
}
PROMPT = 'prompts=["a large red ball moves left slowly"]'


def train(*overrides: str) -> None:
    """Train in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["videodiff", "train", "trainer.max_steps=2", *overrides])
        GlobalHydra.instance().clear()
        cli.main()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> Path:
    """Return a run of two steps."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    train(*tiny(world_dataset), f"run={run}")
    return run


@pytest.fixture(scope="module")
def mapped(teacher: Path, world_dataset: Path) -> Path:
    """Return a flow map that began with the teacher, trained in bfloat16 with recomputed blocks."""
    run = teacher.with_name("map")
    more = ["trainer.precision=bf16-mixed", "recompute=full", "sampler=flow_map", "sampler.steps=1"]
    train(*tiny(world_dataset), *MAP, *more, f"start_from={teacher}", f"run={run}")
    return run


def test_a_flow_map_begins_as_its_teacher_and_samples_in_one_step(
    call: Call, teacher: Path, mapped: Path, tmp_path: Path
) -> None:
    origin = json.loads((mapped / "origin.json").read_text())
    assert origin["output_compared"]["largest_difference"] == 0
    assert {name.split(".")[1] for name in origin["new"]} == {"embed_step", "blocks"}
    before, after = (load_file(latest_checkpoint(run) / AVERAGE) for run in (teacher, mapped))
    assert all(after[name].equal(before[name]) for name in before), "what it began with stays"
    learned = {name for name in after if name not in before}
    assert learned == {name for name in after if "step." in name}
    assert all(after[name].any() for name in learned)
    status, _, err = call("sample", str(mapped), PROMPT, f"out={tmp_path}")
    assert status == 0, err
    assert json.loads((tmp_path / "000.json").read_text())["sampler"]["steps"] == 1
    assert len(decode((tmp_path / "000.mp4").read_bytes(), range(8))) == 8


def test_a_flow_map_still_holds_the_run_that_it_began_with(
    call: Call, teacher: Path, mapped: Path, tmp_path: Path
) -> None:
    # A run samples in the precision of its training.
    shutil.copytree(mapped, alike := tmp_path / "alike")
    written = (alike / "config.yaml").read_text()
    (alike / "config.yaml").write_text(written.replace("precision: bf16-mixed", "precision: 32-true"))
    made = {run: tmp_path / f"of_{run.name}" for run in (teacher, alike)}
    for run, out in made.items():
        status, _, err = call("sample", str(run), PROMPT, "sampler=euler", "steps=2", f"out={out}")
        assert status == 0, err
    one, other = ((out / "000.mp4").read_bytes() for out in made.values())
    assert one == other


def test_a_flow_map_goes_on_where_it_stopped(teacher: Path, world_dataset: Path) -> None:
    run = teacher.with_name("goes_on")
    train(*tiny(world_dataset), *MAP, f"start_from={teacher}", f"run={run}", "callbacks.checkpoints.every=1")
    train(f"resume={run}", "trainer.max_steps=3")
    assert latest_checkpoint(run).name == "step_00000003"
    before, after = (load_file(latest_checkpoint(one) / AVERAGE) for one in (teacher, run))
    assert all(after[name].equal(before[name]) for name in before)


@pytest.mark.parametrize("shared", SHARED)
def test_a_flow_map_learns_alike_however_its_weights_and_clips_are_shared(
    shared: str, teacher: Path, world_dataset: Path
) -> None:
    folder = teacher.parent
    recipe = [*tiny(world_dataset), *MAP, f"start_from={teacher}", "schedule=constant", "trainer.log_every_n_steps=1"]
    recipe += ["trainer.max_steps=3", "optimizer.lr=0.01"]
    if not (folder / "alone").exists():
        train(*recipe, f"run={folder / 'alone'}")
    Ranks(2, folder, [*recipe, *SHARED[shared], f"run={folder / shared}"]).finish()
    wanted, found = (read_run(folder / name).metrics["train/loss"][1].tolist() for name in ("alone", shared))
    assert len(found) == 3
    assert found == pytest.approx(wanted, rel=1e-4)
    one, other = (load_file(latest_checkpoint(folder / name) / AVERAGE) for name in ("alone", shared))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-4 if "step." in name else 0, msg=name)


def test_an_objective_without_steps_leaves_their_weights_alone(mapped: Path, world_dataset: Path) -> None:
    # DDP would miss the gradients of weights that no call meets.
    run, more = mapped.with_name("plain"), ["model.step_rank=4", "strategy=ddp"]
    Ranks(
        2, run.parent, [*tiny(world_dataset), *more, "trainer.max_steps=2", f"start_from={mapped}", f"run={run}"]
    ).finish()
    before, after = (load_file(latest_checkpoint(one) / AVERAGE) for one in (mapped, run))
    assert {name for name in after if after[name].equal(before[name])} == {name for name in after if "step." in name}


def test_a_run_of_half_the_steps_learns_from_its_teacher_and_goes_on_with_it(
    teacher: Path, world_dataset: Path
) -> None:
    run = teacher.with_name("half")
    half = ["objective=progressive", "objective.prediction=x", "objective.steps=2", "freeze=[text.*]"]
    train(*tiny(world_dataset), *half, f"start_from={teacher}", f"run={run}", "callbacks.checkpoints.every=1")
    assert yaml.safe_load((run / "config.yaml").read_text())["objective"]["teacher"] == str(teacher)
    before, after = (load_file(latest_checkpoint(one) / AVERAGE) for one in (teacher, run))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved
    assert all(name.startswith("denoiser.") for name in moved)
    train(f"resume={run}", "trainer.max_steps=3")
    assert latest_checkpoint(run).name == "step_00000003"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            ["path=cosine", "objective.prediction=x"],
            "path._target_ 'videodiff.diffusion.path.Cosine' (source: '",
        ),
        (["objective.prediction=v"], "objective.prediction 'v' (source: 'x')"),
    ],
)
def test_a_teacher_whose_answers_mean_something_else_teaches_nothing(
    call: Call, teacher: Path, world_dataset: Path, other: list[str], said: str
) -> None:
    run = teacher.with_name("other")
    half = ["objective=progressive", *other, f"start_from={teacher}", f"run={run}"]
    status, _, err = call("train", *tiny(world_dataset), *half)
    assert (status, err.count("\n")) == (1, 1), err
    assert f"objective.teacher: found {teacher}, whose answers mean something else: {said}" in err
    assert not (run / "config.yaml").exists()


@pytest.mark.parametrize(
    ("base", "sampler", "told"), [(1.5, 3, "3, expected 1.5"), (1.5, 1.5, ""), (3, 2, "2, expected 3")]
)
def test_a_sampler_between_the_trained_steps_is_told(
    call: Call, teacher: Path, world_dataset: Path, tmp_path: Path, base: float, sampler: float, told: str
) -> None:
    # A clip has 8 x 16 x 16 = 2048 values of a channel; a quarter of it as base doubles the shift.
    levels = [f"objective.levels.base_shift={base / 2}", "objective.levels.base_tokens=512", f"sampler.shift={sampler}"]
    few = [*MAP, f"start_from={teacher}", "trainer.max_steps=1", f"run={tmp_path / 'run'}"]
    status, out, err = call("train", *tiny(world_dataset), *few, *levels)
    assert status == 0, err
    lines = [line for line in (out + err).splitlines() if "sampler.shift: found" in line]
    assert len(lines) == bool(told)
    assert all(f"sampler.shift: found {told}" in line for line in lines)
    # An objective that trains no steps may have any shift.
    if told:
        plain = ["trainer.max_steps=1", f"run={tmp_path / 'plain'}", *levels]
        status, out, err = call("train", *tiny(world_dataset), *plain)
        assert (status, "sampler.shift: found" in out + err) == (0, False), err


def test_what_does_not_fit_together_is_one_line_before_anything_is_written(
    call: Call, teacher: Path, world_dataset: Path, tmp_path: Path
) -> None:
    no_rank = "model.step_rank: found 0, expected a rank such as 16 for {}=flow_map"
    mistakes = {
        "objective=flow_map": no_rank.format("objective"),
        "sampler=flow_map": no_rank.format("sampler"),
        "objective=progressive": "objective.teacher: found none, expected a run",
        "sampler.lead=1 sampler.apart=true model.patch=[2,4,4]": (
            "sampler.lead: found 1 with sampler.apart=true, expected a multiple of model.patch[0] = 2"
        ),
    }
    for mistake, said in mistakes.items():
        status, _, err = call("train", *tiny(world_dataset), *mistake.split(), f"run={tmp_path / 'run'}")
        assert (status, err.count("\n")) == (1, 1), err
        assert said in err
        assert not (tmp_path / "run" / "config.yaml").exists()
    begun = f"start_from={teacher}"
    mistakes = {
        "objective.steps: found none, expected the numbers of steps": ["objective.steps=[]", begun],
        "start_from: found none with objective=flow_map, expected a trained run": ["fresh=[]"],
        "whose answers mean something else: objective.prediction 'v'": ["objective.prediction=v", begun],
    }
    for said, mistake in mistakes.items():
        status, _, err = call("train", *tiny(world_dataset), *MAP, *mistake, f"run={tmp_path / 'run'}")
        assert (status, err.count("\n")) == (1, 1), err
        assert said in err
    status, _, err = call("sample", str(teacher), PROMPT, "sampler=flow_map", f"out={tmp_path / 'made'}")
    assert (status, no_rank.format("sampler") in err) == (1, True), err
    # A network without weights for steps cannot take them up without a word of the new ones.
    status, _, err = call("train", *tiny(world_dataset), *MAP[:-1], f"start_from={teacher}", f"run={tmp_path / 'run'}")
    assert (status, "denoiser.embed_step" in err, "step.qkv" in err) == (1, True, True), err
