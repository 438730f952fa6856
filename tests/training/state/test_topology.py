"""A training goes on under another strategy and on another number of processes: same batches, same losses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks
from tests.material.runs.saved_state import assert_same_bits, tensors_of
from videodiff.report.run import read_run
from videodiff.training.state.checkpoint import checkpoints, latest_checkpoint, read_record

ADAMW = ["optimizer=adamw", "optimizer.lr=1e-3", "optimizer.ema_decay=0.9", "schedule=constant"]
EVERY = ["trainer.log_every_n_steps=1", "callbacks.checkpoints.every=2", "callbacks.checkpoints.keep=0"]
# Until which step, on how many processes, and how.
PARTS = (
    (2, 4, "strategy=zero3"),
    (4, 2, "strategy=zero1"),
    (6, 3, "strategy=ddp"),
)
LAST = ["strategy=auto", "trainer.devices=1", "data.micro_batch=4"]


def losses(run: Path) -> list[float]:
    """Return the loss of every step."""
    return read_run(run).metrics["train/loss"][1].tolist()


def test_a_run_on_4_then_2_then_3_then_1_processes_is_that_of_one_that_was_never_stopped(
    cwd: Path, world_dataset: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    recipe = [*tiny(world_dataset), *ADAMW, *EVERY, "data.global_batch=12"]
    for step, processes, strategy in PARTS:
        name = ["name=many", *recipe] if step == 2 else ["resume=runs/many"]
        Ranks(processes, cwd, [*name, strategy, f"trainer.max_steps={step}"]).finish()
    for arguments in (["resume=runs/many", *LAST], ["name=one", *recipe]):
        status, _, err = call("train", *arguments, "trainer.max_steps=8")
        assert status == 0, err
    one, many = Path("runs/one"), Path("runs/many")
    assert len(losses(many)) == len(losses(one)) == 8
    assert losses(many) == pytest.approx(losses(one), rel=1e-5)
    layouts = [read_record(checkpoint)["state"] for checkpoint in checkpoints(many)]
    assert layouts == ["ZeRO 3 over 4 processes", "ZeRO 1 over 2 processes", "whole", "whole"]
    for wanted, found in zip(map(tensors_of, checkpoints(one)), map(tensors_of, checkpoints(many)), strict=True):
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key].to(value.dtype), value, rtol=0, atol=1e-5, msg=lambda t, key=key: key)
    # Of four processes under ZeRO 3 none wrote much more than its quarter.
    sizes = [file.stat().st_size for file in checkpoints(many)[0].glob("state/*.safetensors")]
    assert len(sizes) == 4
    assert max(sizes) < 0.4 * sum(sizes)


MUON = ["optimizer=muon", "schedule=constant"]


@pytest.mark.parametrize(
    ("strategy", "more"),
    [("zero3", MUON), ("zero2", MUON), ("zero2", [*ADAMW, "trainer.precision=bf16-true"])],
    ids=["zero3 muon", "zero2 muon", "zero2 bf16"],
)
def test_the_same_topology_goes_on_to_the_bit(
    tmp_path: Path, world_dataset: Path, strategy: str, more: list[str]
) -> None:
    recipe = [*tiny(world_dataset), *more, *EVERY, f"strategy={strategy}", "trainer.max_steps=4"]
    Ranks(2, tmp_path, ["name=one", *recipe]).finish()
    one, again = tmp_path / "runs/one", tmp_path / "runs/again"
    shutil.copytree(one, again)
    shutil.rmtree(latest_checkpoint(again))
    Ranks(2, tmp_path, ["resume=runs/again"]).finish()
    assert_same_bits(latest_checkpoint(one), latest_checkpoint(again))


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_momenta_go_on_between_muon_of_one_process_and_that_of_deepspeed(
    cwd: Path,
    world_dataset: Path,
    strategy: str,
    call: Callable[..., tuple[int, str, str]],
) -> None:
    # At the same weights the next gradient is the same, and so is the momentum; the steps themselves part in bfloat16.
    more = [*tiny(world_dataset), *MUON, *EVERY, "callbacks.checkpoints.every=1", "trainer.gradient_clip_val=null"]
    assert call("train", "name=one", *more, "trainer.max_steps=3")[0] == 0
    shutil.copytree("runs/one", "runs/many")
    for step in (2, 3):
        shutil.rmtree(f"runs/many/checkpoints/step_{step:08d}")
    Ranks(2, cwd, ["resume=runs/many", f"strategy={strategy}", "trainer.max_steps=2"]).finish()
    wanted, found = (tensors_of(Path(f"runs/{name}/checkpoints/step_00000002")) for name in ("one", "many"))
    momenta = [key for key in wanted if key.endswith(" momentum")]
    assert len(momenta) > 5
    assert {key for key in found if key.endswith(" momentum")} == set(momenta)
    for key in momenta:
        torch.testing.assert_close(
            found[key], wanted[key], rtol=1e-4, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}"
        )
    # And back: the third step begins with these momenta, not with none.
    assert call("train", "resume=runs/many", "strategy=auto", "trainer.devices=1", "trainer.max_steps=3")[0] == 0
    again = tensors_of(Path("runs/many/checkpoints/step_00000003"))
    third = tensors_of(Path("runs/one/checkpoints/step_00000003"))
    for key in momenta:
        apart = (again[key] - third[key]).norm() / third[key].norm()
        assert apart < 0.1, f"{key}: {apart}"
