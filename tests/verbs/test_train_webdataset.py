"""Training from tars without a manifest: the whole way through the command line, on one process and on two."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import finish, start
from tests.material.made_clips import write_dataset
from tests.material.plain_tars import write_tars
from videodiff.data.loader.trained import read_trained
from videodiff.report.run import read_run
from videodiff.training.state.checkpoint import latest_checkpoint, whole

Call = Callable[..., tuple[int, str, str]]


def recipe(urls: str, *more: str) -> list[str]:
    """Return the overrides of a small run on tars of `write_tars`."""
    return [
        "data=webdataset",
        f"data.urls={urls}",
        *("data.frames=4", "data.height=16", "data.width=16", "data.global_batch=4", "data.num_workers=0"),
        *("model.width=16", "model.depth=2", "model.heads=2", "model.patch=[1,4,4]", "text.width=16"),
        *("text.vocabulary=[a,red,square,number]", "sampler.steps=1", "schedule.warmup=2"),
        *("trainer.accelerator=cpu", "trainer.max_steps=20", "trainer.val_check_interval=10"),
        *("callbacks.samples.every=20", "callbacks.checkpoints.every=20"),
        *more,
    ]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three tars, an uneven number for two ranks, of 4, 3 and 5 clips."""
    root = tmp_path_factory.mktemp("tars")
    write_tars(root, (4, 3, 5), frames=12)
    return root


def test_a_run_on_tars_trains_validates_samples_and_is_resumed(
    tars: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = call("train", *recipe(f"{tars}/s-{{0..2}}.tar", f"data.validation_urls={tars}/s-0.tar", "name=a"))
    assert status == 0, err
    run = Path("runs/a")
    curves = read_run(run).metrics
    assert len(curves["val/loss"][1]) == 2
    (one,) = read_trained(run)
    assert (one.shape, one.rates) == ((4, 16, 16), {5.0: 1.0})
    assert len(list((run / "samples" / "step_00000020").glob("*.mp4"))) == 4
    status, out, err = call("sample", str(run), "prompts=[a red square]")
    assert status == 0, err
    assert json.loads((run / "generated" / "000.json").read_text())["fps"] == 5.0
    # Without dataset= the tars that validated the run are measured; any other dataset or tars may be named.
    held_out = write_dataset(tmp_path / "held_out", 3, 12)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copyfile(tars / "s-1.tar", folder / "S.TAR")
    others = [f"dataset={held_out}"], [f"dataset={folder}"], [f"dataset={folder}/S.TAR"], [f"dataset={tars}/s-1.tar"]
    for named, clips in (([], 2), (others[0], 2), *((other, 9) for other in others[1:])):
        status, out, err = call("evaluate", str(run), *named, f"clips={clips}", "steps=1", "keep=2")
        assert status == 0, err
        listed = json.loads((run / "evaluation" / "clips.json").read_text())
        assert {entry["key"] for entry in listed} == ({"clip4", "clip5"} if clips == 9 else {"clip0", "clip1"})
    assert "clips: found 3 in " in out
    assert json.loads((run / "evaluation.json").read_text())["clips"] == 3
    status, out, err = call("train", f"resume={run}", "trainer.max_steps=22")
    assert status == 0, err
    assert "continues at step 20, but not at the exact sample: " in err
    assert latest_checkpoint(run).name == "step_00000022"
    status, out, err = call("inspect", *recipe(str(tars)))
    assert "3, without a manifest; by 12 examined samples" in out, err
    assert "4 x 16 x 16     100% of the clips; 5 fps 100%" in out


def test_two_processes_under_zero_train_from_an_uneven_number_of_tars(tars: Path, tmp_path: Path) -> None:
    more = ["strategy=zero2", "trainer.devices=2", "trainer.max_steps=8", "trainer.val_check_interval=4"]
    more += ["data.micro_batch=1", "name=two"]
    finish(start("train", *recipe(str(tars), *more, f"data.validation_urls={tars}/s-1.tar"), cwd=tmp_path))
    run = tmp_path / "runs" / "two"
    assert whole(latest_checkpoint(run)).name == "step_00000008"
    curves = read_run(run).metrics
    assert all(math.isfinite(loss) for name in ("train/loss", "val/loss") for loss in curves[name][1])


def test_a_command_runs_only_where_the_command_line_has_it_run(
    tars: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    urls = f"pipe:touch {tmp_path}/ran; cat {tars}/s-{{0..2}}.tar"
    short = ["trainer.max_steps=2", "callbacks.checkpoints.every=2"]
    status, _, err = call("train", *recipe(urls, *short), "name=a")
    assert status == 1
    assert "a command for a shell, expected data.pipes=true on this command line" in err
    assert not (tmp_path / "ran").exists()
    status, _, err = call("train", *recipe(urls, *short), "data.pipes=true", "name=a")
    assert status == 0, err
    assert (tmp_path / "ran").exists()
    run = Path("runs/a")
    kept = yaml.safe_load((run / "overrides.yaml").read_text())
    assert not [line for line in kept if "pipe" in line]
    assert "touch" not in (run / "config.yaml").read_text()
    (tmp_path / "ran").unlink()
    status, _, err = call("train", f"resume={run}", "trainer.max_steps=3", "data.pipes=true")
    assert status == 1
    assert "data.urls: found nothing, expected data.urls=<" in err
    for hostile in (f"data.urls='{urls}'", f"data.urls=['{urls}']", f"data={{urls: '{urls}'}}", "data.pipes=true"):
        (run / "overrides.yaml").write_text(yaml.safe_dump(["data=webdataset", hostile]))
        status, _, err = call("train", f"resume={run}", "trainer.max_steps=3")
        assert status == 1
        assert "overrides.yaml: found the override" in err, err
    assert not (tmp_path / "ran").exists()


def test_a_dataset_with_a_manifest_is_sent_to_where_it_belongs(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_dataset(tmp_path / "dataset")
    status, _, err = call("train", *recipe(str(root)))
    assert status == 1
    assert "found a dataset with a manifest, expected tars without one: data=folder data.root=" in err
    write_tars(tmp_path / "tars", (2,))
    status, _, err = call("train", f"data.root={tmp_path}/tars", "text.vocabulary=[a]")
    assert status == 1
    assert "data=webdataset data.urls=" in err


def test_words_have_to_be_given(tars: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = call("train", *recipe(str(tars), "text.vocabulary=null"))
    assert status == 1
    assert "text.vocabulary: found null, expected a list or a file with one word a line" in err
