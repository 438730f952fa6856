"""Evaluation from the command line: any number of processes, one batch in memory, and interrupted at any time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import finish, start
from tests.material.made_clips import sample
from tests.material.networks.small import MeanColour, save_script
from videodiff.data.samples.shards import ShardWriter, clip_sample
from videodiff.data.video.decode import probe
from videodiff.data.video.encode import encode
from videodiff.generation.settings import clip_noise
from videodiff.parallel.launcher import meeting_port
from videodiff.verbs.evaluate import command, held_out
from videodiff.verbs.evaluate.unfinished import Batch, Unfinished, code_in
from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.scene import render

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of a run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the overrides of a distance of sets whose network is the mean of each colour."""
    path = save_script(MeanColour(), tmp_path_factory.mktemp("network") / "colour.pt")
    return ["metric=[consistency,captions,physics,cdfvd]", f"metric.cdfvd.path={path}", "metric.cdfvd.resamples=5"]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of 16 clips of the bouncing world, of which one cannot be read and one is too short."""
    root = tmp_path_factory.mktemp("held") / "dataset"
    with ShardWriter(root) as writer:
        for seed in range(16):
            scene = Bouncing(balls={1: 1.0}, split="all").scene(seed)
            video = encode(render(scene, 16)[: 4 if seed == 9 else 8], scene.fps, crf=8)
            truth = scene.truth()
            members, row = clip_sample(video, probe(video), [scene.caption], truth=None if seed == 9 else truth)
            writer.add(f"{seed:04d}", {**members, "mp4": video[:400] if seed == 3 else video}, row)
    return root


def made(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, bytes]]:
    """Return the figures of an evaluation, the list of its clips and the clips, without the number of its folder."""
    result = json.loads((run / "evaluation.json").read_text())
    listed = json.loads((run / "evaluation/clips.json").read_text())
    clips = {path.name: path.read_bytes() for path in run.glob("evaluation/*/*.mp4")}
    entries = [one | {name: one[name] and Path(one[name]).name for name in ("sampled", "truth")} for one in listed]
    return {**result, "checkpoint": Path(result["checkpoint"]).name}, entries, clips


def test_several_processes_give_the_figures_and_the_clips_of_one(
    run: Path, held: Path, tmp_path: Path, colour: list[str], call: Call
) -> None:
    how = [f"dataset={held}", "clips=14", "batch=4", "keep=6", "given=2", *colour]
    status, out, err = call("evaluate", str(run), *how)
    assert status == 0, err
    assert "1 of 16 clips do not fit: too few frames 1" in out
    assert f"{held}: 1 clip cannot be read, the first one: 0003: " in out
    alone = made(run)
    assert [one["key"] for one in alone[1][:6]] == ["0000", "0001", "0002", "0004", "0005", "0006"]
    assert alone[0]["clips"] == 14
    assert alone[0]["continuation_cdfvd"] > 0
    assert len(alone[2]) == 3 * 6
    # Of four batches the third process of three has one, and the last batch is smaller than the others.
    for world in (2, 3):
        port, ranks = meeting_port(), []
        for rank in range(world):
            env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            ranks.append(start("evaluate", str(run), *how, cwd=tmp_path, env=env))
        said = [finish(rank) for rank in ranks]
        assert made(run) == alone
        assert "leaderboard" in said[0]
        assert "leaderboard" not in said[1]
    assert len((run.parent / "leaderboard.jsonl").read_text().splitlines()) == 3


def test_no_more_than_a_batch_is_in_memory(
    run: Path, world_dataset: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"now": 0, "most": 0}

    def forget(size: int) -> None:
        held["now"] -= size

    def count(frames: np.ndarray) -> np.ndarray:
        held["now"] += frames.nbytes
        held["most"] = max(held["most"], held["now"])
        weakref.finalize(frames, forget, frames.nbytes)
        return frames

    def as_case(sample: dict[str, Any]) -> Any:
        count(sample["video"])
        return original(sample)

    original, sample_clips = held_out.as_case, command.sample_clips
    monkeypatch.setattr(held_out, "as_case", as_case)
    monkeypatch.setattr(command, "sample_clips", lambda *given: [count(frames) for frames in sample_clips(*given)])
    most = []
    for clips in (4, 8, 24):
        held["most"] = 0
        how = [f"dataset={world_dataset}", f"clips={clips}", "batch=2", "keep=24", "given=2", "metric=[consistency]"]
        status, _, err = call("evaluate", str(run), *how)
        assert status == 0, err
        most.append(held["most"])
    clip = 4 * 16 * 16 * 3
    # Two true clips, two of each of two tasks, and one that is being read.
    assert most[0] == most[1] == most[2] <= 7 * clip
    assert held["now"] <= clip


def test_an_interrupted_evaluation_goes_on_and_leaves_the_former_one_whole(
    run: Path, world_dataset: Path, colour: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = ["evaluate", str(run), f"dataset={world_dataset}", "clips=10", "batch=2", "keep=5", "given=2", *colour]
    assert call(*how, "seed=1")[0] == 0
    expected = made(run)
    assert call(*how, "seed=9")[0] == 0
    former = made(run)
    write, batches = Unfinished.write, []

    def dying(self: Unfinished, number: int, batch: Batch) -> None:
        if number == 3:
            raise KeyboardInterrupt
        batches.append(number)
        write(self, number, batch)

    monkeypatch.setattr(Unfinished, "write", dying)
    status, _, err = call(*how, "seed=1")
    assert (status, err.strip().splitlines()[-1]) == (130, "videodiff evaluate: error: interrupted")
    assert batches == [0, 1, 2]
    assert made(run) == former
    # A copy of the folder does not go on: it may come from somebody else.
    copy = Unfinished(Path(shutil.copytree(run, run.parent / "copy")))
    identity = json.loads(copy.identity.read_text())
    del identity["folder"]
    assert Unfinished(run).begin(identity) == 3
    assert copy.begin(identity) == 0
    monkeypatch.setattr(Unfinished, "write", lambda self, *given: (batches.append(given[0]), write(self, *given)))
    status, out, err = call(*how, "seed=1")
    assert status == 0, err
    assert "goes on from 3 of 5 batches of an evaluation that was interrupted" in out
    assert batches == [0, 1, 2, 3, 4]
    assert made(run) == expected
    assert not list(run.glob("evaluation/.*"))
    # Another evaluation takes nothing over, nor does the same one of other code.
    for seed, code, figures in ((9, code_in, former), (1, lambda folder: "other", expected)):
        monkeypatch.setattr(Unfinished, "write", dying)
        assert call(*how, "seed=1")[0] == 130
        monkeypatch.setattr(Unfinished, "write", write)
        monkeypatch.setattr(command, "code_in", code)
        status, out, err = call(*how, f"seed={seed}")
        assert status == 0, err
        assert "goes on" not in out
        assert made(run) == figures


def world_of(root: Path, crf: int, gravity: float = 0.0) -> Path:
    """Write four clips of the bouncing world, encoded so and with this gravity told, and return their dataset."""
    shutil.rmtree(root, ignore_errors=True)
    with ShardWriter(root) as writer:
        for seed in range(4):
            scene = Bouncing(balls={1: 1.0}, split="all").scene(seed)
            video = encode(render(scene, 16), scene.fps, crf=crf)
            truth = scene.truth() | {"gravity": gravity}
            writer.add(f"{seed:04d}", *clip_sample(video, probe(video), [scene.caption], truth=truth))
    return root


def test_figures_are_told_from_those_of_other_weights_and_of_a_dataset_that_was_made_anew(
    run: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, network = world_of(tmp_path / "world", 8), save_script(MeanColour(), tmp_path / "colour.pt")
    how = ["evaluate", str(run), "clips=4", "batch=2", "keep=0", "given=2", "metric=[consistency,cdfvd]"]
    how += [f"metric.cdfvd.path={network}", "metric.cdfvd.resamples=2"]

    def evaluated(dataset: str) -> tuple[str, dict[str, Any]]:
        status, _, err = call(*how, f"dataset={dataset}")
        assert status == 0, err
        result = json.loads((run / "evaluation.json").read_text())
        assert "settings" not in result["metrics"]["truth_motion_smoothness_score"]
        return result["clips_sha256"], result["metrics"]["continuation_cdfvd"]["settings"]

    checksum, settings = evaluated(str(root))
    weights = hashlib.sha256(network.read_bytes()).hexdigest()[:16]
    assert settings == {"path": {"name": "colour.pt", "sha256": weights}, "crop": False}
    # The same clips as plain tars.
    (tar,) = root.glob("*.tar")
    assert evaluated(str(tar))[0] == checksum
    # The same videos with another truth.
    assert evaluated(str(world_of(root, 8, gravity=1.0)))[0] != checksum
    world_of(root, 8)
    # An interrupted evaluation does not go on with other clips of the same names, captions and truth.
    write = Unfinished.write

    def dying(self: Unfinished, number: int, batch: Batch) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(self, number, batch)

    monkeypatch.setattr(Unfinished, "write", dying)
    assert call(*how, f"dataset={root}")[0] == 130
    monkeypatch.setattr(Unfinished, "write", write)
    status, out, err = call(*how, f"dataset={world_of(root, 30)}")
    assert status == 0, err
    assert "goes on" not in out
    assert json.loads((run / "evaluation.json").read_text())["clips_sha256"] != checksum
    board = (run.parent / "leaderboard.md").read_text()
    assert f"## {root}, 4 clips of 4 x 16 x 16, stride 2, 2 given frames\n" in board


def test_the_checksum_of_code_is_that_of_every_module(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    found = set()
    for name, text in (("a.py", "x = 1"), ("deep/b.py", "x = 1"), ("deep/b.py", "x = 2"), ("notes.txt", "x = 1")):
        (tmp_path / name).write_text(text)
        found.add(code_in(tmp_path))
    # The last one is no code.
    assert len(found) == 3


@pytest.mark.parametrize(
    ("board", "message"),
    [
        (
            "{}/folder.jsonl",
            "leaderboard: {}/folder.jsonl: found a place where nothing can be written (Is a directory)",
        ),
        ("{}/config.yaml/a/b.jsonl", "b.jsonl: found a place where nothing can be written (Not a directory)"),
        # No permission stands in the way of root here.
        ("/proc/board.jsonl", "leaderboard: /proc/board.jsonl: found a place where nothing can be written"),
        ("{}/board.md", "leaderboard: found {}/board.md, expected a name that ends with .jsonl"),
    ],
)
def test_a_leaderboard_that_cannot_be_is_refused_before_the_first_sample(
    run: Path, world_dataset: Path, call: Call, board: str, message: str
) -> None:
    (run / "folder.jsonl").mkdir()
    status, _, err = call("evaluate", str(run), f"dataset={world_dataset}", f"leaderboard={board.format(run)}")
    assert (status, err.count("\n")) == (1, 1)
    assert message.format(run) in err


MISTAKES = {
    "dataset={run}": "dataset: {run}: found no manifest.parquet, expected a dataset",
    "dataset=nowhere": "dataset: nowhere: found no such folder, expected a dataset",
    "checkpoint=nowhere": "checkpoint: found no checkpoint.json in nowhere, expected one of {run}/checkpoints: step_",
    "metric=[]": "metric: found none, expected some of background, captions",
    f"seed={2**63 - 256} clips=257": f"seed: found {2**63 - 256} for 257 clips, expected at most {2**63 - 257}",
}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            ["metric=[physics]", "tasks=[text_to_video]"],
            "metric: found nothing that measures text_to_video of these clips: metric.physics measures continuation",
        ),
        (
            ["metric=[fidelity]", "given=2"],
            "metric: found nothing that measures continuation, text_to_video of these clips: metric.fidelity measures "
            "clips of footage",
        ),
        # Of four frames the last one alone is predicted: it has no velocity.
        (
            ["metric=[physics]", "given=3"],
            "metric: found no figure of these 2 clips by physics, for the reasons above, expected at least one",
        ),
    ],
)
def test_an_evaluation_that_would_measure_nothing_is_refused_and_replaces_none(
    run: Path, world_dataset: Path, call: Call, how: list[str], message: str
) -> None:
    evaluate = ["evaluate", str(run), f"dataset={world_dataset}", "clips=2"]
    assert call(*evaluate, "metric=[consistency]")[0] == 0
    former = made(run)
    status, _, err = call(*evaluate, *how)
    assert (status, err.strip().splitlines()[-1]) == (1, f"videodiff evaluate: error: {message}")
    assert made(run) == former
    assert len((run.parent / "leaderboard.jsonl").read_text().splitlines()) == 1


def test_what_a_killed_evaluation_was_writing_is_not_published(
    run: Path, world_dataset: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = ["evaluate", str(run), f"dataset={world_dataset}", "clips=4", "batch=2", "metric=[consistency]"]
    write = Unfinished.write

    def dying(self: Unfinished, number: int, batch: Batch) -> None:
        # As SIGKILL leaves a file that is being written.
        for folder in (self.path, self.clips):
            (folder / ".a.mp4.0123456789ab.partial").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(Unfinished, "write", dying)
    assert call(*how)[0] == 130
    monkeypatch.setattr(Unfinished, "write", write)
    status, _, err = call(*how)
    assert status == 0, err
    assert not list(run.rglob("*.partial"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(run: Path, world_dataset: Path, call: Call, mistake: str) -> None:
    words = [f"dataset={world_dataset}", *mistake.format(run=run).split()]
    status, out, err = call("evaluate", str(run), *words)
    assert (status, err.count("\n"), out) == (1, 1, "")
    assert MISTAKES[mistake].format(run=run) in err


@pytest.mark.parametrize(
    ("settings", "why"),
    {
        "a scale of its own": (
            ["sampler.history=2", "scale=3"],
            "scale: found 3, which changes nothing: the known frames",
        ),
        "the scale of the caption": (["scale=3"], ""),
        "no known frames": (
            ["tasks=[text_to_video]", "guide=caption"],
            "guide: found caption, which changes nothing: no",
        ),
    }.values(),
)
def test_a_setting_that_changes_nothing_is_told(
    run: Path, held: Path, call: Call, settings: list[str], why: str
) -> None:
    how = [f"dataset={held}", "clips=2", "metric=[consistency]", "tasks=[continuation]", "given=2"]
    sampler = ["sampler=euler", "sampler.guide=history", "sampler.steps=1"]
    status, out, err = call("evaluate", str(run), *how, *sampler, *settings)
    assert status == 0, err
    told = [line for line in out.splitlines() if "changes nothing" in line]
    assert len(told) == bool(why)
    assert all(line.startswith(f"videodiff evaluate: {why}") for line in told)


def test_the_largest_seeds_and_batches_that_can_be_are_taken(run: Path, world_dataset: Path, call: Call) -> None:
    # Three frames of four are given: the fourth has no velocity, which costs the metric of motion alone.
    how = ["evaluate", str(run), f"dataset={world_dataset}", "clips=2", f"seed={2**63 - 2}", "batch=1000000000"]
    status, out, err = call(*how, "metric=[consistency,physics]")
    assert status == 0, err
    assert "continuation: 2 of 2 clips show all balls in fewer than 2 predicted frames, left out" in out
    result = json.loads((run / "evaluation.json").read_text())
    assert (result["batch"], result["seed"]) == (2, 2**63 - 2)
    assert "continuation_temporal_flickering_score" in result
    assert "velocity_error" not in result


def test_a_dataset_that_changes_meanwhile_is_refused(
    run: Path, world_dataset: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = held_out.as_case
    times: dict[str, int] = {}

    def renamed(sample: dict[str, Any]) -> Any:
        times[sample["key"]] = times.get(sample["key"], 0) + 1
        found = read(sample)
        return found._replace(caption="another") if times[found.key] > 1 and found.key == "0002" else found

    monkeypatch.setattr(held_out, "as_case", renamed)
    status, _, err = call("evaluate", str(run), f"dataset={world_dataset}", "clips=4", "metric=[consistency]")
    assert (status, err.strip().count("\n")) == (1, 0) or "\r" in err
    assert "found another clip than 0002 at its place: it has changed" in err
    assert not (run / "evaluation.json").exists()


def test_a_sample_that_is_not_finite_is_one_line_and_no_figures(
    run: Path, world_dataset: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noise(shape: tuple[int, ...], seeds: list[int]) -> torch.Tensor:
        return torch.stack([clip_noise(shape, [one])[0] * (float("nan") if one == 2 else 1.0) for one in seeds])

    monkeypatch.setattr("videodiff.generation.sampling.clip_noise", noise)
    status, _, err = call(
        "evaluate", str(run), f"dataset={world_dataset}", "clips=4", "batch=2", "metric=[consistency]"
    )
    assert status == 1
    said = err.strip().splitlines()[-1]
    assert "sample of seed 2" in said
    assert "found 768 of 3,072 values that are not finite, expected numbers" in said
    assert not (run / "evaluation.json").exists()


def test_an_evaluation_takes_what_there_is_and_does_not_depend_on_the_batch(
    call: Call, trained: Path, world_dataset: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    status, _, err = call("evaluate", str(run))
    assert (status, err.count("\n")) == (1, 1)
    assert "dataset: found none, and the run has neither data.validation_root nor" in err
    results = []
    for batch in (5, 24):
        status, out, err = call("evaluate", str(run), f"dataset={world_dataset}", f"batch={batch}", "keep=2", "given=2")
        assert status == 0, err
        assert f"clips: found 24 in {world_dataset}, fewer than 256: all of them are used" in out
        results.append(json.loads((run / "evaluation.json").read_text()))
        listed = json.loads((run / "evaluation/clips.json").read_text())
        named = {entry[name] for entry in listed for name in ("sampled", "truth") if entry[name]}
        assert {path.relative_to(run).as_posix() for path in run.glob("evaluation/**/*.mp4")} == named
    assert {entry["fps"] for entry in listed} == {2.5}
    numbers = [{name: v for name, v in one.items() if isinstance(v, float)} for one in results]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)
    # What cannot be done is said before anything is sampled, and what there was stays.
    before = (run / "evaluation.json").read_bytes()
    status, _, err = call("evaluate", str(run), f"dataset={world_dataset}", "given=4")
    assert (status, err.count("\n")) == (1, 1)
    assert "given: found 4, expected 1 to 3 of the clip's 4 frames" in err
    assert (run / "evaluation.json").read_bytes() == before


MINE = """
import numpy as np
from videodiff.metrics.metric import Case, Quantity, metric

@metric({"sharpness": Quantity("higher", "levels", 0.0)}, tasks=("continuation",))
def sharpness(case: Case, axis: int = 2, server: str = "", token: str = "") -> dict[str, float]:
    return {"sharpness": float(np.abs(np.diff(case.frames.astype(float), axis=axis)).mean())}

def undeclared(case):
    return {"sharpness": 0.0}
"""


def test_a_metric_of_ones_own_is_in_the_figures_the_markdown_and_the_page(
    call: Call, trained: Path, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_metrics.py").write_text(MINE)
    (tmp_path / "my_broken_metrics.py").write_text("\nRATE = 1 / 0\n")
    (tmp_path / "my_typed_metrics.py").write_text("RATE = (\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "targets": {"sharpness": 1e4}}))
    how = ["evaluate", str(run), f"dataset={world_dataset}", "clips=2", "keep=1", "given=2", "metric=[physics]"]
    for wrong, message in (
        (
            ["+metric.mine._target_=my_metrics.undeclared"],
            "metric.mine._target_: found my_metrics.undeclared, expected",
        ),
        (["+metric.mine={_target_: my_metrics.sharpness, axs: 1}"], "metric.mine.axs: found no such setting"),
        (
            ["+metric.mine._target_=my_metric.sharpness"],
            "No module named 'my_metric'; if my_metric.py is in this folder",
        ),
        (
            ["+metric.mine._target_=my_broken_metrics.sharpness"],
            "metric.mine._target_: found my_broken_metrics.sharpness, which cannot be imported: ZeroDivisionError: "
            f"division by zero (at {tmp_path / 'my_broken_metrics.py'}:2)",
        ),
        (
            ["+metric.mine._target_=my_typed_metrics.sharpness"],
            f"'(' was never closed (my_typed_metrics.py, line 1) (at {tmp_path / 'my_typed_metrics.py'}:1)",
        ),
        (["+metric.mine._target_=my_metrics.sharpness", "+metric.b._target_=my_metrics.sharpness"], "gives too"),
        (["metric=[physics,captoins]"], "found no metric 'captoins', expected one of"),
        (
            ["metric=[fvd]", "metric.fvd.path=[a]"],
            "metric.fvd.path: found ['a'], expected the name of a file or folder",
        ),
        (["metric=[fvd]", "metric.fvd.least=1"], "metric.fvd.least: found 1, expected a whole number of at least 2"),
        (["metric=[jedi]", "metric.jedi.crop=7"], "metric.jedi.crop: found 7, expected true or false"),
        (["metric=[subject]", "+metric.subject.batch=0"], "metric.subject.batch: found 0, expected a whole number"),
        (
            ["metric=[fidelity]", "metric.fidelity.clips=some"],
            "metric.fidelity.clips: found 'some', expected one of all",
        ),
    ):
        status, _, err = call(*how, *wrong)
        assert (status, err.count("\n")) == (1, 1), err
        assert message in err
        assert not (run / "evaluation.json").exists()
    mine = ["+metric.mine._target_=my_metrics.sharpness", "+metric.mine.axis=1", "+metric.mine.token=hidden"]
    status, _, err = call(*how, *mine, "+metric.mine.server='https://me:hidden@host/judge'")
    assert status == 0, err
    result = json.loads((run / "evaluation.json").read_text())
    written = [path.read_bytes() for path in tmp_path.rglob("*.json*") if path.is_file()]
    assert not any(b"hidden" in data for data in written)
    assert result["sharpness"] > 0
    assert result["table"][0]["sharpness"] == result["sharpness"]
    own = hashlib.sha256(MINE.encode()).hexdigest()[:16]
    settings = {"axis": 1, "server": "https://host/judge", "token": "...", "_target_": f"my_metrics.sharpness {own}"}
    meaning = {"better": "higher", "unit": "levels", "range": [0.0, None], "settings": settings}
    assert result["metrics"]["sharpness"] == meaning
    assert (result["targets"], "count_accuracy" in result) == ({"sharpness": 1e4}, False)
    assert "| sharpness (levels) ↑ |" in (run / "evaluation.md").read_text()
    assert call("report", str(run))[0] == 0
    page = (run / "report.html").read_text()
    assert "sharpness&nbsp;↑" in page
    assert "target ≥ 10000" in page


FAILING = """
import numpy as np
from videodiff.metrics.metric import Case, Quantity, metric

@metric({"on_truth": Quantity("higher")})
def on_truth(case: Case) -> dict[str, float]:
    return {"on_truth": float("nan") if case.key == "0002" else 0.0}

@metric({"on_sample": Quantity("higher")})
def on_sample(case: Case) -> dict[str, float]:
    same = np.array_equal(case.frames, case.truth)
    return {"on_sample": float("inf") if case.key == "0001" and not same else 0.0}
"""


def test_a_metric_that_fails_at_a_clip_is_left_out_and_the_others_are_measured(
    call: Call, run: Path, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_metrics.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    how = ["evaluate", str(run), f"dataset={world_dataset}", "clips=4", "batch=2", "given=2", "metric=[consistency]"]
    how += [f"+metric.{name}._target_=failing_metrics.{name}" for name in ("on_truth", "on_sample")]
    status, out, err = call(*how)
    assert status == 0, err
    result = json.loads((run / "evaluation.json").read_text())
    assert result["left_out"] == {
        "on_truth": "metric.on_truth: clip 0002: found on_truth = nan, expected a finite number",
        "on_sample": "metric.on_sample: clip 0001: found on_sample = inf, expected a finite number",
    }
    for reason in result["left_out"].values():
        assert f"left out: {reason}" in out
        assert f"not measured: {reason}" in (run / "evaluation.md").read_text()
    assert {name.rpartition("_temporal_flickering")[0] for name in result["metrics"]} - {""} == {
        "continuation",
        "text_to_video",
        "truth",
    }
    assert not [name for name in result["metrics"] if name.endswith(("on_truth", "on_sample"))]
    assert call("report", str(run))[0] == 0
    assert "metric.on_sample: clip 0001" in (run / "report.html").read_text()


def test_footage_with_strange_words_is_evaluated(call: Call, trained: Path, tmp_path: Path) -> None:
    run, root = Path(shutil.copytree(trained, tmp_path / "run")), tmp_path / "footage"
    with ShardWriter(root) as writer:
        for number, (frames, fps) in enumerate(((8, 5.0), (3, 5.0), (8, 12.0))):
            members, row = sample(number, frames, captions=(f"a red zebra {number}",))
            writer.add(f"clip{number}", members, {**row, "fps": fps})
        members, row = sample(9)
        writer.add("broken", {**members, "mp4": members["mp4"][:300]}, row)
    status, out, err = call("evaluate", str(run), f"dataset={root}")
    assert status == 0, err
    assert "1 of 4 clips do not fit: too few frames 1" in out
    assert "1 clip cannot be read, the first one:" in out
    assert "words that training does not know (zebra, 0, 2), left out" in out
    assert f"{root}: 1 of 2 clips: 6 frames a second is no rate of the training, which had 2.5" in out
    result = json.loads((run / "evaluation.json").read_text())
    assert (result["clips"], result["table"][0]["name"]) == (2, "model")
    assert result["shape"] == "4 x 16 x 16, stride 2"
    assert "2 clips of 4 x 16 x 16, stride 2, 3 given frames" in (tmp_path / "leaderboard.md").read_text()
