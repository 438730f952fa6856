"""Settings that meet: each gives the losses of one process, to the rounding of what it computes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks
from videodiff.report.run import read_run

# A loss on v would enlarge what bfloat16 rounds where there is little noise.
RECIPE = [
    "schedule=constant",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=1",
    "objective.loss=x",
]
# The settings, the optimizer, and how far the losses may be from those of one process (relative).
CASES = {
    "fsdp2_compiled": (["strategy=fsdp2", "compile=blocks", "compile.backend=aot_eager"], "adamw", 1e-5),
    "fsdp2_fp8": (["strategy=fsdp2", "fp8=rowwise", "fp8.emulate=true", "fp8.least_width=16"], "adamw", 1e-5),
    "fsdp2_bfloat16": (["strategy=fsdp2", "strategy.gather=bfloat16", "strategy.reduce=bfloat16"], "adamw", 1e-3),
    # DeepSpeed orthogonalises in bfloat16.
    "muon_offload": (["strategy=zero2_offload"], "muon", 1e-4),
}


def losses(folder: Path, name: str) -> list[float]:
    """Return the loss of every step."""
    return read_run(folder / "runs" / name).metrics["train/loss"][1].tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("combined")


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_one_process(
    case: str,
    folder: Path,
    world_dataset: Path,
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    words, optimizer, near = CASES[case]
    numbers = [word for word in words if word.startswith("fp8")]
    recipe, alone = [*tiny(world_dataset), *RECIPE, f"optimizer={optimizer}"], f"{optimizer}{'_fp8' * bool(numbers)}"
    if not (folder / "runs" / alone).exists():
        status, _, err = call("train", f"name={alone}", *recipe, *numbers, "strategy=single")
        assert status == 0, err
    Ranks(2, folder, [f"name={case}", *recipe, *words]).finish()
    wanted, found = losses(folder, alone), losses(folder, case)
    assert len(found) == 4
    assert found == pytest.approx(wanted, rel=near)
    # What is computed in bfloat16 is not what is computed in float32.
    assert near == 1e-5 or found != wanted
