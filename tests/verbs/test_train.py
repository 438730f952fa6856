"""What a run may be resumed as."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import tiny
from videodiff.codec.pixels import Pixels
from videodiff.verbs.train.advice import never_warm, rarely_begun
from videodiff.verbs.train.resume import check_same


def test_a_key_that_a_later_version_added_does_not_stop_a_resume() -> None:
    old = {"model": {"width": 16}, "seed": 0}
    new = {"model": {"width": 16, "gate": 0.0}, "seed": 0, "compile": None}
    check_same(OmegaConf.create(new), OmegaConf.create(old), Path("runs/a"), ["seed=0"])
    for given in ("model.gate=0.0", "model=tiny"):
        with pytest.raises(ValueError, match=r"model\.gate: found 0\.0, expected None as in runs/a/config\.yaml"):
            check_same(OmegaConf.create(new), OmegaConf.create(old), Path("runs/a"), [given])


def test_a_key_that_this_version_does_not_have_is_named() -> None:
    old, new = {"model": {"width": 16, "gone": 1}}, {"model": {"width": 16}}
    with pytest.raises(ValueError, match=r"model\.gone: found no such key in this version, expected 1 as in"):
        check_same(OmegaConf.create(new), OmegaConf.create(old), Path("runs/a"))


def test_another_value_is_refused() -> None:
    old, new = {"model": {"width": 16}}, {"model": {"width": 32}}
    with pytest.raises(ValueError, match=r"model\.width: found 32, expected 16 as in"):
        check_same(OmegaConf.create(new), OmegaConf.create(old), Path("runs/a"))


@pytest.mark.parametrize(("warmup", "steps", "share"), [(500, 60, "12 %"), (500, 499, "99 %")])
def test_a_run_that_ends_before_its_learning_rate_has_risen_says_how_far_it_rises(
    warmup: int, steps: int, share: str
) -> None:
    def said(**schedule: object) -> list[str]:
        return list(never_warm(OmegaConf.create({"schedule": schedule, "trainer": {"max_steps": steps}})))

    (line,) = said(warmup=warmup)
    assert f"schedule.warmup: found {warmup} with trainer.max_steps={steps}" in line
    assert f"at most {share} of optimizer.lr" in line
    assert [said(warmup=steps), said(), said(warmup="a tenth")] == [[], [], []]


def test_single_frames_that_see_few_of_the_levels_that_begin_a_clip_are_named(
    call: Callable[..., tuple[int, str, str]], world_dataset: Path, cwd: Path
) -> None:
    shapes = "data.buckets=[{frames: 4, height: 16, width: 16, keep: 0.5}, {frames: 1, height: 16, width: 16}]"
    recipe = [*tiny(world_dataset), shapes, "trainer.max_steps=1", "objective.levels.base_shift=6.0"]
    grown = [*recipe, f"objective.levels.base_tokens={4 * 16 * 16}", "sampler.shift=6.0"]
    # The root of a quarter of the tokens is half of the shift; below a half, and only where a frame leads, it is said.
    said = []
    for name, more in {
        "below": ["sampler.lead=1", "sampler.shift=6.1"],
        "half": ["sampler.lead=1"],
        "none leads": ["sampler.shift=6.1"],
        "equal": ["sampler.lead=1", "sampler.shift=6.1", "objective.levels.base_tokens=null"],
    }.items():
        status, out, err = call("train", *grown, *more, f"name={name.replace(' ', '_')}")
        assert status == 0, err
        said.append("found a shift of 3 for clips of 1 x 16 x 16, expected about 6.1" in out)
    assert said == [True, False, False, False]


def test_levels_of_a_class_of_ones_own_are_not_asked_for_their_shift() -> None:
    cfg = OmegaConf.create({"sampler": {"lead": 1, "shift": 5.0}})
    data = SimpleNamespace(trained=[SimpleNamespace(shape=(1, 16, 16))])
    for objective in (SimpleNamespace(), SimpleNamespace(levels=lambda t, tokens, generator: torch.rand(t))):
        assert list(rarely_begun(cfg, SimpleNamespace(objective=objective, codec=Pixels()), data)) == []


def test_a_key_that_a_folder_may_not_give_is_given_again(
    call: Callable[..., tuple[int, str, str]], world_dataset: Path, cwd: Path
) -> None:
    recipe, place = [*tiny(world_dataset), "name=a"], "logger.csv.name=curves"
    status, _, err = call("train", *recipe, place, "trainer.max_steps=1")
    assert status == 0, err
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=2")
    assert status == 1
    assert "logger.csv.name='curves'" in err
    assert "expected none: only the command line may set this key" in err
    status, _, err = call("train", "resume=runs/a", place, "trainer.max_steps=2")
    assert status == 0, err
    status, _, err = call("train", *recipe, place, "resume=auto", "trainer.max_steps=3")
    assert status == 0, err
    assert len(list(Path("runs/a/curves").glob("version_*"))) == 3


@pytest.mark.parametrize("most", [3, 4, 5])
def test_a_run_that_has_taken_its_steps_says_so(
    most: int, call: Callable[..., tuple[int, str, str]], trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, run := tmp_path / "run")
    status, out, err = call("train", f"resume={run}", f"trainer.max_steps={most}")
    assert status == 0, err
    line = f"takes no step: {run}/checkpoints/step_00000004 has reached trainer.max_steps={most}"
    assert (line in out) == (most <= 4)
    assert f"videodiff train: {max(most, 4)} steps in {run}" in out
