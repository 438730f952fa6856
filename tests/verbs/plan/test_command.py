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


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["data.height=17"], "data.height: found 17, expected a multiple of 4 (codec 1 x model.patch 4; nearest: 16)"),
        (["data.frames=7", "model.patch=[2,4,4]"], "data.frames: found 7, 7 after the codec, expected a multiple of"),
        (["codec=wan_vae", "data.height=64", "data.width=64", "data.frames=16"], "found 16 frames, expected 1 + 4 k"),
    ],
)
def test_a_shape_that_training_would_refuse_is_refused(call: Call, asked: list[str], told: str) -> None:
    status, _, err = call("plan", "experiment=bouncing_cpu", "cluster=cpux2", *asked)
    assert (status, err.count("\n")) == (1, 1)
    assert told in err


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


PROFILES = {
    "memory_gib: -80": "cluster.memory_gib: found -80, expected a number above 0",
    "~memory_gib": "cluster.memory_gib: found nothing, expected a number above 0",
    "~network_gb_per_s": "cluster.network_gb_per_s: found nothing, expected a number above 0",
    "~tflops": "cluster.tflops: found nothing, expected a mapping with half, full",
    "~_target_": "cluster._target_: found nothing, expected the class of this part",
    "nodes: many": "cluster.nodes: found 'many', expected a whole number of at least 1",
    "[": "4090.yaml",
    "faults: 1.0e+12": "cluster.faults: found 1e+12 for a card and year, one in ",
}


@pytest.mark.parametrize("change", PROFILES)
def test_a_mistake_in_a_profile_of_ones_own_is_a_line_that_names_the_key(
    tmp_path: Path, call: Call, change: str
) -> None:
    # An option of a group may have a number for its name.
    profile = tmp_path / "mine/cluster/4090.yaml"
    profile.parent.mkdir(parents=True)
    lines = (conf_dir() / "cluster/h100x8.yaml").read_text().splitlines()
    key = change.lstrip("~").partition(":")[0]
    kept = [line for line in lines if not line.startswith(f"{key}:")]
    profile.write_text("\n".join(kept + [change] * (not change.startswith("~"))))
    how = ["experiment=bouncing_cpu", *SMALL, "--config-dir", str(tmp_path / "mine"), "cluster=4090"]
    status, _, err = call("plan", *how)
    assert (status, err.count("\n")) == (1, 1)
    assert PROFILES[change] in err
    assert "Error:" not in err


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (["clips=1e9", "tokens=1e9"], "clips: found 1e+09 beside tokens=1e+09, expected one budget"),
        (["json={file}/plan.json"], "json: {file}/plan.json: found a place where nothing can be written"),
        (["cluster=cpux2", "calibrate={file}/c.yaml"], "calibrate: {file}/c.yaml: found a place where nothing can be"),
        (["fp8=rowwise"], "fp8: found rowwise, expected none: no profile has a speed of products in FP8"),
        (["cluster=h100x8", "calibrate={file}.yaml"], "calibrate: found no GPU here, expected a H100"),
        (["--config-dir", "{file}"], "--config-dir: found no folder {file}, expected one"),
    ],
)
def test_a_mistake_of_the_command_is_told_before_anything_is_traced(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, mistake: list[str], message: str
) -> None:
    def traced(*given: object) -> None:
        raise AssertionError

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("job_of", "measure"):
        monkeypatch.setattr(f"videodiff.verbs.plan.command.{name}", traced)
    (tmp_path / "file").write_text("")
    file = str(tmp_path / "file")
    status, _, err = call("plan", "experiment=bouncing_cpu", *(word.format(file=file) for word in mistake))
    assert (status, err.count("\n")) == (1, 1)
    assert message.format(file=file) in err


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            ["strategy=zero2", "strategy.sequence_parallel=3"],
            "strategy.sequence_parallel=3 processes share a clip of 8",
        ),
        (["strategy=zero2", "strategy.sequence_parallel=64"], "on nodes of 8 cards"),
        (["data.micro_batch=7"], "batches of 16 clips do not divide over 8 processes with 7 clips each"),
        (["strategy=single"], "strategy=single has one process, and the cluster 8 cards"),
        # A dataset without a name is none that the planner needs, and a cluster without faults saves when it likes.
        (["~data.root", "+data.root=???", "cluster.faults=0"], None),
    ],
)
def test_a_training_that_cannot_run_as_it_stands_is_told_why(call: Call, how: list[str], told: str | None) -> None:
    status, out, err = call("plan", "experiment=bouncing_cpu", *SMALL, "cluster=h100x8", *how)
    assert status == 0, err
    stands = next(line for line in out.splitlines() if line.startswith("as it stands"))
    assert (f"it cannot run: {told}" in stands or told in stands) if told else stands.endswith("it fits")
    assert ("no faults: save when you like" in out) == (told is None)
