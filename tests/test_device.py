"""What a GPU would refuse, and where it would make the host wait: found on a CPU, with an emulated card.

`tests/material/card` computes with tensors that say they are on a card. A tensor that is made on the host in a step, or
a generator of the wrong device, is an error there as on CUDA; every number that is read back from the card is counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.material.card.start import build

ROOT = Path(__file__).parents[1]
# What makes the host wait in two steps of a training, one of which saves a checkpoint: docs/gpu.md says it.
TWO_STEPS = {"videodiff/parallel/whole.py:examine_gradient": 2, "videodiff/training/guard.py:finite": 1}
# What is read once for a batch of clips: is a frame known, are pixels kept, do frames lead.
BATCH = {"videodiff/generation/settings.py:denoise": 2, "videodiff/diffusion/sampler.py:schedule": 1}
# Of each prediction: is a frame guided, which saves a second call of the network where none is.
GUIDED = "videodiff/diffusion/guidance.py:denoise"
SAMPLERS = {
    **{name: {**BATCH, GUIDED: 2} for name in ("euler", "ddim", "dpm_solver_2m", "flow_map")},
    # At the end of each step it asks whether a frame is not clean yet: the last of two steps has one slope.
    "heun": {**BATCH, GUIDED: 3, "videodiff/diffusion/sampler.py:heun": 2},
}


@pytest.fixture(scope="module")
def found(world_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the walk found, by name."""
    library = build(tmp_path_factory.mktemp("card") / "card.so")
    command = [sys.executable, "-m", "tests.material.card.start", str(library), str(world_dataset)]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def of_kind(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name.removeprefix(f"{kind}: "): value for name, value in found.items() if name.startswith(f"{kind}: ")}


def test_the_emulated_card_refuses_what_a_card_refuses(found: dict[str, Any]) -> None:
    refused = of_kind(found, "refused")
    assert len(refused) == 6
    assert all(refused.values()), refused


def test_the_emulated_card_makes_the_host_wait_where_a_card_does(found: dict[str, Any]) -> None:
    waits = of_kind(found, "waits")
    free = {"sent", "number", "fill", "fill where", "made there"}
    assert {name for name, count in waits.items() if not count} == free, waits
    assert len(waits) == 16


def test_no_objective_makes_the_host_wait_or_leaves_the_card(found: dict[str, Any]) -> None:
    steps = of_kind(found, "step")
    assert len(steps) == 7
    assert not any(steps.values()), steps


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_makes_the_host_wait_only_where_it_may_save_a_call(found: dict[str, Any], name: str) -> None:
    assert found[f"sampler: {name}"] == SAMPLERS[name]


def test_samplers_around_given_parts_stay_on_the_card(found: dict[str, Any]) -> None:
    assert isinstance(found["sampler: lead apart"], dict), found["sampler: lead apart"]
    assert isinstance(found["sampler: inpainting"], dict), found["sampler: inpainting"]


def test_a_training_step_reads_one_value_back_and_a_checkpoint_another_one(found: dict[str, Any]) -> None:
    assert found["train"] == TWO_STEPS
