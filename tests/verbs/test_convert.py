"""A checkpoint is verified, exported as plain safetensors, and written in another number of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import tiny
from tests.material.runs.saved_state import assert_same_bits, weights_of
from videodiff.training.state.checkpoint import latest_checkpoint, whole

Call = Callable[..., tuple[int, str, str]]
CONSTANT = ["optimizer=muon", "schedule=constant"]


@pytest.fixture
def run(call: Call, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run of two steps."""
    monkeypatch.chdir(tmp_path)
    status, _, err = call("train", "name=a", *tiny(world_dataset), "trainer.max_steps=2", *CONSTANT)
    assert status == 0, err
    return Path("runs/a")


def test_weights_and_averages_are_exported_and_nothing_is_written_over(run: Path, call: Call) -> None:
    checkpoint = latest_checkpoint(run)
    status, out, err = call("convert", "runs/a")
    assert status == 0, err
    assert f"{checkpoint}: step 2, 61 weights of " in out
    assert (
        "values, with ema, ema_step, exp_avg, exp_avg_sq, momentum, step; layout whole in 1 file; all checksums match"
        in out
    )
    for what, wanted in (
        ("average", load_file(checkpoint / "average.safetensors")),
        ("weights", weights_of(checkpoint)),
    ):
        assert call("convert", str(checkpoint), f"out=made/{what}.safetensors", f"what={what}")[0] == 0
        found = load_file(f"made/{what}.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert sorted(path.name for path in Path("made").iterdir()) == ["average.safetensors", "weights.safetensors"]
    status, _, err = call("convert", "runs/a", "out=made/average.safetensors")
    assert status == 1
    assert "out: found made/average.safetensors, expected a name that is free" in err


def test_a_state_in_other_files_is_gone_on_from_to_the_bit(run: Path, call: Call) -> None:
    checkpoint = latest_checkpoint(run)
    for files, name in ((3, "b"), (1, "c")):
        place = Path(f"runs/{name}/checkpoints") / checkpoint.name
        source = run if name == "b" else "runs/b/checkpoints/step_00000002"
        status, _, err = call("convert", str(source), f"out={place}", "what=state", f"files={files}")
        assert status == 0, err
        assert len(list(whole(place).glob("state/*.safetensors"))) == files
        assert_same_bits(checkpoint, place)
        for file in ("config.yaml", "overrides.yaml", "command.txt"):
            (place.parents[1] / file).write_text((run / file).read_text())
    for name in ("a", "b", "c"):
        status, _, err = call("train", f"resume=runs/{name}", "trainer.max_steps=4")
        assert status == 0, err
    for name in ("b", "c"):
        assert_same_bits(latest_checkpoint(run), latest_checkpoint(Path("runs", name)))


def test_a_run_is_shared_as_settings_and_averages_that_sample_and_start_from_take(
    run: Path, call: Call, world_dataset: Path
) -> None:
    for name, more in (("whole", []), ("half", ["dtype=float16"])):
        status, _, err = call("convert", "runs/a", "what=run", f"out=shared/{name}", *more)
        assert status == 0, err
    files = sorted(str(path.relative_to("shared/half")) for path in Path("shared/half").rglob("*") if path.is_file())
    place = "checkpoints/step_00000002"
    assert files == [f"{place}/average.safetensors", f"{place}/checkpoint.json", "config.yaml", "trained.json"]
    kept = load_file(f"shared/half/{place}/average.safetensors")
    for name, value in load_file(latest_checkpoint(run) / "average.safetensors").items():
        assert torch.equal(kept[name], value.half())
    facts = []
    for folder in ("runs/a", "shared/whole", "shared/half"):
        status, _, err = call("sample", folder, 'prompts=["a large red ball moves left slowly"]')
        assert status == 0, err
        facts.append(json.loads(Path(folder, "generated/000.json").read_text()))
    assert facts[0]["frames_sha256"] == facts[1]["frames_sha256"]
    how = ["start_from=shared/half", "trainer.max_steps=2", *CONSTANT]
    status, out, err = call("train", "name=b", *tiny(world_dataset), *how)
    assert status == 0, err
    assert "61 weights" in out
    status, _, err = call("train", "resume=shared/half", "trainer.max_steps=4")
    assert (status, err.count("\n")) == (1, 1)
    status, out, err = call("convert", "shared/half")
    assert status == 0, err
    assert "step 2, 61 averaged weights of " in out
    assert "no state to resume from" in out
    for wrong in (["what=weights", "out=none.safetensors", "dtype=float16"], ["what=run", "dtype=float16"]):
        status, _, err = call("convert", "runs/a", *wrong)
        assert status == 1
        assert "dtype: found float16 with what=" in err


def test_what_is_damaged_or_no_checkpoint_is_a_line(run: Path, call: Call) -> None:
    checkpoint = latest_checkpoint(run)
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    for arguments, message in (
        (["nowhere"], "checkpoint: found no nowhere/checkpoint.json, expected a checkpoint, or the folder of a run"),
        # No permission stands in the way of root at the first one.
        (["runs/a", "out=/proc/x.safetensors"], "out: /proc/x.safetensors: found a place where nothing can be written"),
        (["runs/a", "out=runs/a/config.yaml/x", "what=run"], "out: runs/a/config.yaml/x: found a place where nothing"),
        (["runs/a", "out=x.bin"], "out: found x.bin, expected a name that ends with .safetensors"),
        (["runs/a", "what=all"], "override 'what=all': found 'all', expected one of average, weights, state, run"),
    ):
        status, _, err = call("convert", *arguments)
        assert status == 1
        assert message in err.strip().splitlines()[-1]
    (checkpoint / "checkpoint.json").write_text(json.dumps(record | {"version": 2}))
    status, _, err = call("convert", str(checkpoint))
    assert status == 1
    assert "found version 2, expected 3; a training that is resumed from it saves the newer one" in err
    (checkpoint / "checkpoint.json").write_text(json.dumps(record))
    (checkpoint / "state/rank_00000.safetensors").write_bytes(b"x")
    status, _, err = call("convert", str(checkpoint), "out=y.safetensors", "what=weights")
    assert status == 1
    assert "state/rank_00000.safetensors: found 1 bytes, expected" in err
    assert not Path("y.safetensors").exists()
    # The averaged weights are another file, and whole.
    assert call("convert", str(checkpoint), "out=z.safetensors")[0] == 0
