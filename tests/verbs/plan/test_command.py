"""videodiff plan: what it prints can be pasted, and what cannot fit is refused with what would."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from videodiff.verbs.config.checking import check_composed
from videodiff.verbs.config.groups import conf_dir

Call = Callable[..., tuple[int, str, str]]
SMALL = ("model.depth=2", "model.width=32", "model.heads=2", "model.axes=[space,time]", "objective=latent")


def line_of(out: str) -> list[str]:
    """Return the overrides of the command that a plan ends with."""
    return shlex.split(out.strip().splitlines()[-1])[2:]


def check_line(line: list[str]) -> None:
    """Raise where videodiff train would not take these overrides."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        check_composed("train", compose("train", overrides=line), line)


def test_a_plan_without_a_dataset_ends_with_a_command_that_trains(tmp_path: Path, call: Call) -> None:
    status, out, err = call(
        "plan", "experiment=hdvila_256", "cluster=h100x64", *SMALL, "seed=3", f"json={tmp_path / 'plan.json'}"
    )
    assert status == 0, err
    line = line_of(out)
    check_line(line)
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["overrides"] == line
    assert line[:2] == ["experiment=hdvila_256", "model.depth=2"]
    assert {"seed=3", "trainer.num_nodes=8", "trainer.devices=8"} < set(line)
    assert not any(word.startswith(("cluster", "json")) for word in line)
    choice = found["choice"]
    shares = 64 // choice["sequence"]
    assert shares * choice["accumulate"] * choice["micro_batch"] // 1 == 256
    assert found["clips"] == 200_000 * 256
    assert found["days"] == pytest.approx(200_000 * found["step"]["total"] / 86400 / (1 - found["checkpoint"]["lost"]))
    # T5 and the autoencoder are on each card.
    assert found["memory"]["encoders"] == pytest.approx(2e6 * (4762 + 83.7))


def test_what_fits_in_no_way_is_refused_with_what_would_fit(call: Call) -> None:
    wide = ("experiment=hdvila_256", "model.depth=8", "model.width=4096", "model.heads=32", "trainer.precision=32-true")
    cluster = ("cluster=l40sx8", "cluster.memory_gib=16", "cluster.host_gib=64")
    status, _, err = call("plan", *wide, *cluster)
    assert status == 1
    assert "cluster: found" in err
    assert "cluster.nodes=" in err


def test_a_batch_that_does_not_divide_is_told_with_one_that_does(call: Call) -> None:
    status, _, err = call("plan", "experiment=hdvila_256", *SMALL, "cluster=h100x64", "data.global_batch=1")
    assert status == 1
    assert "data.global_batch=" in err


def test_a_training_that_does_not_fit_as_it_stands_is_told_the_smallest_change(call: Call) -> None:
    status, out, err = call(
        "plan",
        *("experiment=uniform_gpu", "model.depth=2", "cluster=4090x1", "cluster.memory_gib=4", "data.micro_batch=128"),
    )
    assert status == 0, err
    told = next(line for line in out.splitlines() if line.startswith("as it stands"))
    assert "does not fit" in told
    assert "data.micro_batch=" in told or "recompute=" in told


def test_buckets_and_latents_are_planned(call: Call, tmp_path: Path) -> None:
    buckets = (
        "data.buckets=[{frames: 16, height: 256, width: 256}, {frames: 1, height: 128, width: 128, global_batch: 64}]"
    )
    status, _, err = call(
        *("plan", "experiment=hdvila_256", "cluster=h100x8", *SMALL, buckets, "data.deliver=[latent,text]"),
        *("tokens=1e9", f"json={tmp_path / 'plan.json'}"),
    )
    assert status == 0, err
    found = json.loads((tmp_path / "plan.json").read_text())
    assert [shape["name"] for shape in found["shapes"]] == ["16 x 256 x 256", "1 x 128 x 128"]
    assert found["tokens"] == pytest.approx(1e9)
    assert found["memory"]["encoders"] == 0
