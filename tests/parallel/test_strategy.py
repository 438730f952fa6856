"""However the work is spread, the same global batch and the same noise give the same weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import finish, start, tiny
from tests.material.runs.saved_state import progress_in
from tests.material.warm import CHILDREN
from videodiff.data.samples.manifest import Manifest
from videodiff.training.state.checkpoint import AVERAGE, latest_checkpoint, whole

SPREADS = {
    "ddp": ["strategy=ddp", "trainer.devices=2"],
    "zero1": ["strategy=zero1", "trainer.devices=2"],
    "zero2": ["strategy=zero2", "trainer.devices=2", "data.micro_batch=1"],
    "fsdp2": ["strategy=fsdp2", "trainer.devices=2", "strategy.reshard_after_forward=false", "recompute=full"],
    # Sampling in between changes nothing.
    "zero3": ["strategy=zero3", "trainer.devices=2", "callbacks.samples.every=2", "sampler.steps=1"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spread")


def average(folder: Path, dataset: Path, name: str, *more: str) -> dict[str, Tensor]:
    """Train four steps and return the averaged weights."""
    if not (folder / "runs" / name).exists():
        recipe = [*tiny(dataset), "trainer.max_steps=4", f"name={name}", *more]
        finish(start("train", *recipe, cwd=folder))
    return load_file(latest_checkpoint(folder / "runs" / name) / AVERAGE)


def test_muon_under_fsdp2_takes_the_steps_of_one_process(folder: Path, world_dataset: Path) -> None:
    wanted = average(folder, world_dataset, "muon_whole")
    sampling = ["callbacks.samples.every=2", "sampler.steps=1"]
    found = average(folder, world_dataset, "muon_rows", *SPREADS["fsdp2"], *sampling)
    assert wanted.keys() == found.keys()
    for key, weight in wanted.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_muon_under_zero_steps_like_muon_of_one_process(folder: Path, world_dataset: Path, name: str) -> None:
    # A few steps, for the first one moves the head alone; DeepSpeed orthogonalises in bfloat16 and does not
    # clip, ours in float32 and clips: they part by a tenth, and by nine tenths where the step has another size.
    once = ["trainer.max_steps=3", "optimizer.ema_decay=0.0", "schedule.warmup=1", "schedule.decay=0.0"]
    start_weights = average(folder, world_dataset, "muon_start", *once, "optimizer.lr=1e-12")
    wanted = average(folder, world_dataset, "muon_one", *once)
    found = average(folder, world_dataset, f"muon_{name}", *once, *SPREADS[name])
    matrices = [key for key in wanted if ".blocks." in key and key.endswith("weight") and wanted[key].ndim == 2]
    moved = torch.cat([(wanted[key] - start_weights[key]).flatten() for key in matrices])
    other = torch.cat([(found[key] - start_weights[key]).flatten() for key in matrices])
    assert moved.norm() > 0
    assert (moved - other).norm() / moved.norm() < 0.2


def test_what_cannot_be_read_is_replaced_alike_and_the_checkpoint_names_it(folder: Path, world_dataset: Path) -> None:
    broken = shutil.copytree(world_dataset, folder / "broken")
    rows = [Manifest.load(broken).row(i) for i in (1, 4)]
    for row in rows:
        with (broken / row["shard"]).open("r+b") as file:
            file.seek(row["offset"] + 512)
            file.write(bytes(600))
    adamw = ["optimizer=adamw", "optimizer.lr=1e-3"]
    wanted = average(folder, broken, "broken_one", *adamw)
    found = average(folder, broken, "broken_ddp", *adamw, *SPREADS["ddp"], "data.num_workers=1")
    for key, weight in wanted.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5)
    lost = []
    for name in ("broken_one", "broken_ddp"):
        losses = progress_in(latest_checkpoint(folder / "runs" / name))["ClipDataModule"]["quarantine"]
        lines = (folder / "runs" / name / "quarantine.jsonl").read_text().splitlines()
        assert {json.loads(line)["key"] for line in lines} == {key for _, key, *_ in losses}
        # Workers read ahead, so they may know of more.
        lost.append({(key, tuple(order)) for _, key, _, _, order, _ in losses if order[0] < 4})
    assert lost[0] == lost[1]
    assert lost[0]


@pytest.mark.parametrize(("name", "to"), [("ddp", "all"), ("zero1", "first")])
def test_a_second_signal_within_a_step_ends_all_processes(
    folder: Path, world_dataset: Path, name: str, to: str
) -> None:
    run = folder / "runs" / f"stopped_{name}"
    recipe = [*tiny(world_dataset), *SPREADS[name], "optimizer=adamw", "trainer.max_steps=100000"]
    env = {**os.environ, CHILDREN: "no"}
    process = start("train", f"name={run.name}", *recipe, cwd=folder, env=env, start_new_session=True)
    try:
        end = time.monotonic() + 200
        while not (tables := list(run.glob("metrics/version_0/metrics.csv"))) or b"\n1," not in tables[0].read_bytes():
            assert process.poll() is None, process.communicate()[0][-3000:]
            assert time.monotonic() < end, "no step within some minutes"
            time.sleep(0.1)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT) if to == "all" else process.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        out, _ = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + (signal.SIGINT if to == "all" else signal.SIGTERM)
    assert out.count("saving, then stopping; again to stop at once") == 1
    # The second signal may come while the first one's checkpoint is written: what has a name is whole.
    for saved in run.glob("checkpoints/step_*"):
        whole(saved, AVERAGE)
    end = time.monotonic() + 20
    while members(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert members(process.pid) == [], "a process of the run goes on"


def members(session: int) -> list[str]:
    """Return the commands of the living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(path.with_name("cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_zero_3_leaves_the_functions_of_torch_as_they_were(
    call: Callable[..., tuple[int, str, str]], cwd: Path, world_dataset: Path
) -> None:
    before = torch.nn.functional.linear
    status, _, err = call("train", *tiny(world_dataset), "strategy=zero3", "trainer.devices=1", "trainer.max_steps=1")
    assert status == 0, err
    assert torch.nn.functional.linear is before
