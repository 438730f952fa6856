"""What is not finite never reaches weights, moments, averages or a checkpoint; training goes on or ends with a line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.conftest import start, tiny
from tests.material.runs.ranks import LIMIT, Ranks
from tests.material.runs.saved_state import assert_same_bits, tensors_of
from videodiff.data.storage.files import sha256_of
from videodiff.training import module
from videodiff.training.guard import Spikes, Taken, finite, shortened, suspects, tell_backward
from videodiff.training.rollback import Rollback, batches_to_leave, read_rollbacks, roll_back
from videodiff.training.state.checkpoint import checkpoints, latest_checkpoint, load_average, step_of

Call = Callable[..., tuple[int, str, str]]
EVERY = [f"{n:04d}" for n in range(24)]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function after which these clips are NaN where the network gets them, as after an encoder's overflow."""
    encode = module.encode_video

    def spoil(*keys: str) -> None:
        def spoilt(batch: dict[str, Any], *rest: Any) -> torch.Tensor:
            x = encode(batch, *rest)
            x[[i for i, key in enumerate(batch["key"]) if key in keys]] = float("nan")
            return x

        monkeypatch.setattr(module, "encode_video", spoilt)

    return spoil


@pytest.fixture
def key(call: Call, spoil: Callable[..., None], world_dataset: Path, cwd: Path) -> str:
    """Return the key of the second clip of the third step: that of a run whose clips are all spoilt."""
    spoil(*EVERY)
    status, _, err = call("train", "name=spoilt", *recipe(world_dataset), "trainer.max_steps=3")
    assert status == 0, err
    (line,) = [line for line in err.splitlines() if line.startswith("step 3: skipped")]
    keys = line.partition("clips ")[2].partition(";")[0].split(", ")
    assert len(keys) == 4
    return keys[1]


def recipe(root: Path) -> list[str]:
    often = ["callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=0", "callbacks.guard.rollbacks=0"]
    return [*tiny(root), *often]


def test_a_bad_clip_costs_its_step_and_a_resumed_run_has_the_same_bits(
    call: Call, spoil: Callable[..., None], key: str, world_dataset: Path
) -> None:
    spoil(key)
    root = world_dataset
    status, _, err = call("train", "name=whole", *recipe(root), "trainer.max_steps=5")
    assert status == 0, err
    lines = [line for line in err.splitlines() if "skipped" in line]
    assert lines == [f"step 3: skipped, loss or gradient not finite, clips {key}; 1 of at most 10 in 1,000 steps"]
    saved = [path.name[-1] for path in checkpoints(Path("runs/whole"))]
    assert saved == ["1", "2", "4", "5"], "a skipped step is no time to save"
    assert all(value.isfinite().all() for value in tensors_of(latest_checkpoint(Path("runs/whole"))).values())
    # The run that ends with the skipped step has what the step before left.
    status, _, err = call("train", "name=part", *recipe(root), "trainer.max_steps=3", "schedule=constant")
    assert status == 0, err
    second, third = checkpoints(Path("runs/part"))[-2:]
    assert (second.name[-1], third.name[-1]) == ("2", "3")
    assert_same_bits(second, third)
    # Of the whole run everything after the second step goes, and comes again.
    shutil.copytree("runs/whole", "runs/again")
    for path in checkpoints(Path("runs/again"))[2:]:
        shutil.rmtree(path)
    status, _, err = call("train", "resume=runs/again")
    assert status == 0, err
    assert f"clips {key}; 1 of at most 10" in err
    assert_same_bits(latest_checkpoint(Path("runs/whole")), latest_checkpoint(Path("runs/again")))


@pytest.fixture
def shout(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function after which the loss of these clips is so many times what it was."""
    step = module.VideoDiffusion.training_step

    def shout(*keys: str, by: float) -> None:
        def loud(self: module.VideoDiffusion, batch: dict[str, Any], index: int) -> torch.Tensor:
            loss = step(self, batch, index)
            return loss * by if set(keys) & set(batch["key"]) else loss

        monkeypatch.setattr(module.VideoDiffusion, "training_step", loud)

    return shout


def test_a_bad_clip_and_a_spike_cost_their_steps_and_nothing_else_under_every_strategy(
    call: Call, world_dataset: Path, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, training_step = module.encode_video, module.VideoDiffusion.training_step

    def spoilt(batch: dict[str, Any], *rest: Any) -> torch.Tensor:
        x = encode(batch, *rest)
        # In the first of two micro-batches.
        x[(batch["position"] == 0) & (batch["step"] == 2)] = float("nan")
        return x

    def loud(self: module.VideoDiffusion, batch: dict[str, Any], index: int) -> torch.Tensor:
        loss = training_step(self, batch, index)
        return loss * 1000 if batch["step"] == 3 else loss

    monkeypatch.setattr(module, "encode_video", spoilt)
    monkeypatch.setattr(module.VideoDiffusion, "training_step", loud)
    how = ["optimizer=adamw", "callbacks.guard.history=2", "data.micro_batch=2", "trainer.devices=1"]
    wanted = None
    for strategy in ("auto", "zero1", "zero2_offload", "zero3", "zero3_offload", "fsdp2"):
        more = [f"name={strategy}", f"strategy={strategy}", *how, "trainer.max_steps=5"]
        status, _, err = call("train", *recipe(world_dataset), *more)
        assert status == 0, err
        bad, spike = (line for line in err.splitlines() if "skipped" in line)
        assert bad.startswith("step 3: skipped, loss or gradient not finite, clips 00")
        assert "," not in bad.partition("clips ")[2].partition(";")[0], "one clip is bad"
        assert spike.startswith("step 4: skipped, a spike: gradient of norm ")
        saved = checkpoints(Path("runs", strategy))
        assert [path.name[-1] for path in saved] == ["1", "2", "5"]
        found = tensors_of(saved[-1])
        wanted = wanted or found
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=f"{strategy}: {name}")


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_a_scale_of_the_loss_in_float16_makes_no_spike_and_is_found_once(
    call: Call, float16: None, shout: Callable[..., None], world_dataset: Path, cwd: Path, strategy: str
) -> None:
    # Too much for the scale that DeepSpeed begins with.
    shout(*EVERY, by=16)
    how = [f"strategy={strategy}", "trainer.devices=1", "trainer.precision=16-true", "optimizer=adamw"]
    how += ["callbacks.guard.history=2", "trainer.max_steps=12"]
    status, _, err = call("train", "name=whole", *recipe(world_dataset), *how)
    assert status == 0, err
    begun = step_of(checkpoints(Path("runs/whole"))[0])
    skipped = [line for line in err.splitlines() if "skipped" in line]
    assert all("skipped, loss or gradient not finite" in line for line in skipped)
    assert len(skipped) >= begun - 1 > 2
    shutil.copytree("runs/whole", "runs/again")
    for path in checkpoints(Path("runs/again"))[1:]:
        shutil.rmtree(path)
    status, _, err = call("train", "resume=runs/again")
    assert status == 0, err
    assert [line for line in err.splitlines() if "skipped" in line] == skipped[begun - 1 :]
    assert_same_bits(latest_checkpoint(Path("runs/whole")), latest_checkpoint(Path("runs/again")))


def test_a_run_that_diverges_goes_back_and_leaves_the_batches_out(
    call: Call, world_dataset: Path, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, seen, begun = module.encode_video, [], []

    def spoilt(batch: dict[str, Any], *rest: Any) -> torch.Tensor:
        seen.append(batch["step"])
        return encode(batch, *rest) * (float("nan") if batch["step"] in (2, 3) else 1.0)

    def execv(program: str, arguments: list[str]) -> None:
        begun.append(arguments[3:])
        raise SystemExit(0)

    monkeypatch.setattr(module, "encode_video", spoilt)
    monkeypatch.setattr(os, "execv", execv)
    more = ["callbacks.guard.budget=1", "callbacks.guard.rollbacks=1", "trainer.max_steps=6", "trust=[a.b]"]
    status, out, err = call("train", "name=a", *recipe(world_dataset), *more)
    assert status == 0, err
    # The third and the fourth batch are spoilt, and one may be.
    assert seen == [0, 1, 2, 3]
    assert "2 of at most 1 in 1,000 steps" in out
    assert "goes back to step_00000002 and leaves out 2 batches from there on" in out
    assert begun == [["train", "resume=runs/a", "trust=[a.b]"]]
    status, out, err = call(*begun[0])
    assert status == 0, err
    assert "leaves out 2 batches after step_00000002" in out
    assert seen[4:] == [4, 5, 6, 7]
    assert latest_checkpoint(Path("runs/a")).name == "step_00000006"
    # A later checkpoint knows where in the order it is.
    status, out, err = call("train", "resume=runs/a", "trainer.max_steps=7")
    assert status == 0, err
    assert seen[8:] == [8]
    assert "leaves out" not in out


def test_a_run_that_diverges_again_goes_back_further_and_at_last_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (10, 20, 30):
        folder = run / "checkpoints" / f"step_{step:08d}"
        (folder / "state").mkdir(parents=True)
        (folder / "average.safetensors").write_bytes(b"whole")
        # The run had left out 4 batches when it began to save.
        loops = {"loops": {"fit_loop": {}}, "callbacks": {}, "lr_schedulers": [{"last_epoch": step}]}
        progress = {"global_step": step, **loops, "ClipDataModule": {"step": step + 4, "left_out": 4}}
        (folder / "state/progress.json").write_text(json.dumps(progress))
        paths = {name: folder / name for name in ("average.safetensors", "state/progress.json")}
        files = {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in paths.items()}
        record = {"version": 3, "step": step, "state": "whole", "processes": 1, "files": files}
        (folder / "checkpoint.json").write_text(json.dumps(record))
    (run / "checkpoints/step_00000030/state/progress.json").write_bytes(b"other")
    # Training does not read the average.
    (run / "checkpoints/step_00000020/average.safetensors").write_bytes(b"")
    assert roll_back(run, 37, 3, left_out=4) == Rollback(37, "step_00000020", 17), "the newest is damaged"
    assert batches_to_leave(run, run / "checkpoints/step_00000020") == 17
    assert batches_to_leave(run, run / "checkpoints/step_00000010") == 0
    # After step 25 the next batch is 25 + 21 = 46, after step 10 it was 10 + 4 = 14.
    assert roll_back(run, 25, 3, left_out=21) == Rollback(25, "step_00000010", 32)
    assert [path.name for path in checkpoints(run)] == ["step_00000010", "step_00000030"], "20 is put aside"
    assert batches_to_leave(run, run / "checkpoints/step_00000010") == 32
    assert batches_to_leave(run, run / "checkpoints/step_00000020") == 0, "the last rollback went further back"
    assert roll_back(run, 12, limit=3) is None, "there is no other one"
    assert roll_back(run, 12, limit=2) is None
    assert len(read_rollbacks(run)) == 2


def test_the_processes_of_a_node_begin_again_together(world_dataset: Path, tmp_path: Path) -> None:
    # Any gradient that is larger than the one before is a spike, and none may be.
    watch = ["callbacks.guard.spike=1.000001", "callbacks.guard.history=1", "callbacks.guard.budget=0"]
    how = ["strategy=ddp", "trainer.devices=2", "optimizer=adamw", "callbacks.guard.rollbacks=1"]
    process = start("train", "name=a", *recipe(world_dataset), *watch, *how, "trainer.max_steps=1000", cwd=tmp_path)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1, out
    assert out.count("goes back to step_") == 1
    assert out.count("leaves out") == 2
    assert out.count("videodiff train: error: step ") == 1
    assert len(read_rollbacks(tmp_path / "runs/a")) == 1


def test_the_limit_of_a_gradient_follows_the_median() -> None:
    spikes = Spikes(factor=10.0, history=3)
    for norm in (1.0, 4.0):
        spikes.add(norm)
        assert spikes.limit() == float("inf"), "too few are known"
    for norm in (2.0, float("nan"), float("inf"), None):
        spikes.add(norm)
        assert spikes.limit() == 20.0
    spikes.add(100.0)
    assert spikes.limit() == 40.0
    again = Spikes(factor=10.0, history=3)
    again.restore([*spikes.norms])
    assert again.limit() == 40.0
    again.restore([1.0])
    assert again.limit() == float("inf"), "of the norms before none is left"
    assert Spikes(factor=None, history=1).limit() == float("inf")


def test_too_many_skipped_steps_end_training_and_the_good_checkpoint_stays(
    call: Call, spoil: Callable[..., None], world_dataset: Path, cwd: Path
) -> None:
    root = world_dataset
    more = ["callbacks.checkpoints.keep=1", "trainer.max_steps=40", "callbacks.guard.budget=2"]
    status, _, err = call("train", "name=a", *recipe(root), *more, "trainer.max_steps=2")
    assert status == 0, err
    before = tensors_of(latest_checkpoint(Path("runs/a")))
    spoil(*EVERY)
    status, _, err = call("train", "resume=runs/a", "trainer.max_steps=40")
    assert status == 1
    assert [line.startswith("step ") for line in err.splitlines() if "skipped" in line] == [True, True]
    last = err.strip().splitlines()[-1]
    assert last.startswith("videodiff train: error: step 5: loss or gradient not finite, clips ")
    assert "3 of at most 2 in 1,000 steps (callbacks.guard.budget)" in last
    assert last.endswith("the last checkpoint is runs/a/checkpoints/step_00000002")
    assert [path.name[-1] for path in checkpoints(Path("runs/a"))] == ["2"]
    found = tensors_of(latest_checkpoint(Path("runs/a")))
    assert all(torch.equal(before[key], found[key]) for key in before)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_step_that_ruins_the_weights_is_the_last_one_and_not_saved(
    call: Call, world_dataset: Path, cwd: Path, optimizer: str
) -> None:
    arguments = [*tiny(world_dataset), f"optimizer={optimizer}", "callbacks.checkpoints.every=1", "trainer.max_steps=9"]
    status, _, err = call("train", "name=a", *arguments, "optimizer.lr=1e30")
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("videodiff train: error: ")
    assert "lr" in last or "learning rate" in last
    assert not list(cwd.glob("runs/a/checkpoints/step_*"))


@pytest.mark.parametrize(
    ("how", "last"),
    [
        (["callbacks.checkpoints.every=3"], 3),
        (["callbacks.checkpoints.every=9", "trainer.val_check_interval=2", "trainer.limit_val_batches=1"], 2),
        (["~callbacks.checkpoints"], 4),
    ],
)
def test_weights_are_looked_at_before_they_are_saved_or_validated_and_at_the_end(
    call: Call, world_dataset: Path, cwd: Path, how: list[str], last: int
) -> None:
    Path("words.txt").write_text((world_dataset / "words.txt").read_text() + "zebra\n")
    spoils = ["+callbacks.spoils._target_=tests.parallel.odd_ranks.SpoilsUnseen", "text.vocabulary=words.txt"]
    words = [
        "trainer.max_steps=4",
        f"data.validation_root={world_dataset}",
        "trainer.val_check_interval=9",
        *how,
        *spoils,
    ]
    status, _, err = call("train", "name=a", *tiny(world_dataset), *words)
    assert status == 1, err
    assert f"error: step {last} with the learning rate " in err.strip().splitlines()[-1], err
    assert not list(cwd.glob("runs/a/checkpoints/step_*"))


def test_weights_that_are_ruined_on_one_rank_alone_end_training_on_all(world_dataset: Path, tmp_path: Path) -> None:
    how = ["strategy=ddp", "optimizer=adamw", "trainer.max_steps=100000", "name=a"]
    spoils = "+callbacks.spoils._target_=tests.parallel.odd_ranks.Spoils"
    ranks = Ranks(2, tmp_path, [*recipe(world_dataset), *how, spoils])
    try:
        for rank in ranks.ranks:
            rank.wait(LIMIT)
    finally:
        ranks.kill()
    assert [rank.returncode for rank in ranks.ranks] == [1, 1], ranks.said()
    assert ranks.said().count("videodiff train: error: step 2 with the learning rate ") == 1, ranks.said()
    assert [path.name for path in checkpoints(tmp_path / "runs/a")] == ["step_00000001"]


def test_a_loss_that_is_not_finite_makes_every_gradient_so_and_a_finite_one_changes_none() -> None:
    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    weight = nn.Parameter(torch.ones(5))
    plain = (weight * x).square().sum()
    plain.backward()
    wanted, weight.grad = weight.grad, None
    told = tell_backward((weight * x).square().sum())
    told.backward()
    assert torch.equal(told, plain)
    assert torch.equal(weight.grad, wanted)
    for bad in (float("inf"), float("nan"), float("-inf")):
        weight.grad = None
        # The gradient of a sum with an infinite constant is finite by itself.
        tell_backward((weight * x).sum() + bad).backward()
        assert weight.grad.isnan().all()


def test_suspects_are_the_clips_whose_loss_is_no_number_or_else_all() -> None:
    good, bad = Taken(["a", "b"], torch.tensor([1.0, 2.0])), Taken(["c", "d"], torch.tensor([1.0, float("nan")]))
    assert suspects([good, bad]) == ["d"]
    assert suspects([good]) == ["a", "b"]


def test_of_many_clips_eight_are_named_and_the_others_counted() -> None:
    assert shortened(EVERY[:8]) == "0000, 0001, 0002, 0003, 0004, 0005, 0006, 0007"
    assert shortened(EVERY[:11]) == f"{shortened(EVERY[:8])} and 3 more"


def test_weights_are_finite_up_to_what_a_norm_can_hold() -> None:
    assert finite([torch.ones(3), torch.zeros(0)])
    for value in (float("nan"), float("inf"), 1e30):
        assert not finite([torch.ones(3), torch.tensor([value])])


def test_a_checkpoint_whose_average_is_no_number_is_refused_by_all_who_read_it(
    call: Call, world_dataset: Path, cwd: Path
) -> None:
    assert call("train", "name=a", *tiny(world_dataset), "trainer.max_steps=1")[0] == 0
    checkpoint = latest_checkpoint(Path("runs/a"))
    average, path = load_file(checkpoint / "average.safetensors"), checkpoint / "average.safetensors"
    name = sorted(average)[3]
    average[name].view(-1)[0] = float("nan")
    save_file(average, path)
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    record["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (checkpoint / "checkpoint.json").write_text(json.dumps(record))
    for arguments in (
        ["sample", "runs/a", "prompts=[a ball]"],
        ["evaluate", "runs/a", f"dataset={world_dataset}", "clips=1"],
        ["inspect", str(checkpoint)],
    ):
        status, _, err = call(*arguments)
        assert status == 1
        assert err.strip().splitlines()[-1].startswith(f"videodiff {arguments[0]}: error: ")
        assert f"average.safetensors: weight {name}: found 1 of " in err
    status, out, _ = call("inspect", "runs/a")
    assert status == 0
    assert f"not usable: {checkpoint}/average.safetensors: weight {name}" in out
    with pytest.raises(ValueError, match="not finite"):
        load_average(checkpoint, nn.Linear(1, 1))
