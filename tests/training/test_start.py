"""A training that begins with the weights of another one: all of them, under every strategy, and once."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks
from tests.material.runs.saved_state import assert_same_bits, tensors_of
from videodiff import cli
from videodiff.data.storage.files import sha256_of
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.training import start
from videodiff.training.start import Start, Weights, check_names, compact, find_source, freeze
from videodiff.training.state.checkpoint import checkpoints, latest_checkpoint
from videodiff.training.state.pieces import WEIGHT, Piece

Call = Callable[..., tuple[int, str, str]]
EVERY = ["callbacks.checkpoints.every=1", "callbacks.checkpoints.keep=0"]
OTHER = ["optimizer=adamw", "optimizer.lr=1e-3", "optimizer.ema_decay=0.9", "schedule=constant"]
FROZEN = "freeze=[text.*,denoiser.blocks.0.*]"


def run_here(*arguments: str) -> None:
    """Run `videodiff` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["videodiff", *arguments])
        GlobalHydra.instance().clear()
        cli.main()


def average(run: Path, step: int = -1) -> dict[str, Tensor]:
    return load_file(checkpoints(run)[step] / "average.safetensors")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> Path:
    """Return a run of three steps."""
    run = tmp_path_factory.mktemp("source") / "source"
    run_here("train", *tiny(world_dataset), "trainer.max_steps=3", "schedule.warmup=1", f"run={run}")
    return run


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path, source: Path) -> Path:
    """Return a run of two steps with another optimizer, half of it frozen, that began with the source."""
    run = tmp_path_factory.mktemp("begun") / "begun"
    run_here(
        *("train", *tiny(world_dataset), *OTHER, *EVERY, FROZEN),
        *("trainer.max_steps=2", f"start_from={source}", f"run={run}"),
    )
    return run


def test_weights_and_average_begin_with_the_average_of_the_source(source: Path, begun: Path) -> None:
    wanted, first = average(source), checkpoints(begun)[0]
    state, made = tensors_of(first), load_file(first / "average.safetensors")
    assert made.keys() == wanted.keys()
    moved = 0
    for name, value in wanted.items():
        weight = state[f"{name} weight"]
        if name.startswith(("text.", "denoiser.blocks.0.")):
            assert torch.equal(weight, value)
            assert torch.equal(made[name], value)
            assert f"{name} ema" not in state
        else:
            # The first decay is 2 / 11, of an average that was the source's weight.
            torch.testing.assert_close(made[name], value + (weight - value) * 9 / 11, rtol=1e-5, atol=1e-7)
            # A step of AdamW moves no weight by more than the learning rate.
            assert (weight - value).abs().max() < 1.1e-3
            moved += not torch.equal(weight, value)
    assert moved > 20


def test_the_record_tells_the_origin(source: Path, begun: Path) -> None:
    told, checkpoint = json.loads((begun / "origin.json").read_text()), latest_checkpoint(source)
    assert (told["step"], told["start_from"]) == (3, str(source))
    assert told["path"] == str(checkpoint / "average.safetensors")
    assert told["sha256"] == sha256_of(checkpoint / "average.safetensors")
    assert told["weights"] == len(average(source))
    assert {name.split(".")[0] for name in told["frozen"]} == {"text", "denoiser"}
    assert told["output_compared"]["largest_difference"] == 0
    assert told["new"] == told["unlike"] == []


def test_the_file_in_a_checkpoint_is_the_checkpoint_with_its_configuration(source: Path, tmp_path: Path) -> None:
    checkpoint = latest_checkpoint(source)
    one, other = find_source(str(checkpoint)), find_source(str(checkpoint / "average.safetensors"))
    assert other._replace(named=one.named) == one
    assert other.run == source
    alone = find_source(shutil.copy(checkpoint / "average.safetensors", tmp_path))
    assert (alone.run, alone.step, alone.sha256) == (None, None, one.sha256)
    # A checkpoint that somebody has handed on without its run.
    moved = find_source(shutil.copytree(checkpoint, tmp_path / "given/away" / checkpoint.name))
    assert (moved.run, moved.step, moved.sha256) == (None, 3, one.sha256)


def test_a_source_with_a_link_out_of_its_folder_is_refused(source: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(source, tmp_path / "run"))
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(source / "config.yaml")
    with pytest.raises(ValueError, match=r"run/config\.yaml: found a path outside of"):
        find_source(str(run))


def test_a_network_that_is_large_is_not_built_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "MOST_COMPARED", 4 * sum(value.numel() for value in average(source).values()) - 1)
    begin = Start(find_source(str(source)), network=lambda: pytest.fail("built"))
    assert begin.gap(None) is None
    assert "samples were not compared with the source's: the network is large" in begin.told(None)


def test_a_pattern_of_new_weights_that_the_source_has_is_told_of(source: Path) -> None:
    for fresh, told in (["denoiser.blocks.0.*"], True), ([], False):
        line = Start(find_source(str(source)), fresh).told(None)
        assert (f"; fresh={fresh} changes nothing, as the source has these weights" in line) == told


def test_a_resumed_run_does_not_begin_again(begun: Path, call: Call, tmp_path: Path) -> None:
    again = Path(shutil.copytree(begun, tmp_path / "again"))
    shutil.rmtree(checkpoints(again)[-1])
    # Nobody looks at the source.
    for name in ("overrides.yaml", "config.yaml"):
        path = again / name
        path.write_text(path.read_text().replace("/source", "/gone"))
    origin = (again / "origin.json").read_text()
    status, out, err = call("train", f"resume={again}")
    assert status == 0, err
    assert "begins with" not in out
    assert_same_bits(checkpoints(begun)[-1], checkpoints(again)[-1])
    assert (again / "origin.json").read_text() == origin


def test_a_run_with_frozen_weights_can_be_sampled_and_begun_with(
    begun: Path, call: Call, tmp_path: Path, world_dataset: Path
) -> None:
    prompt = 'prompts=["a small blue ball moves up quickly"]'
    status, _, err = call("sample", str(begun), prompt, "steps=1", f"out={tmp_path / 'made'}")
    assert status == 0, err
    # Another length and another learning rate, from a checkpoint in the middle.
    more = [*tiny(world_dataset), "trainer.max_steps=1", "data.frames=4", f"run={tmp_path / 'third'}"]
    status, out, err = call("train", *more, f"start_from={checkpoints(begun)[0]}")
    assert status == 0, err
    assert "the network's output equals the source's bit by bit; samples differ by data.frames 4 (source: 8)" in out
    assert json.loads((tmp_path / "third/origin.json").read_text())["step"] == 1


def test_a_network_of_the_same_weights_that_computes_something_else_is_told_of(
    source: Path, call: Call, tmp_path: Path, world_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[bool, bool]] = []
    forward = SpaceTimeTransformer.forward

    def watched(self: SpaceTimeTransformer, *args: Any, **kwargs: Any) -> Tensor:
        computed.append((self.training, torch.is_autocast_enabled("cpu")))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SpaceTimeTransformer, "forward", watched)
    more = [*tiny(world_dataset), "trainer.max_steps=1", "model.axes=[time]", "trainer.precision=bf16-mixed"]
    more += [f"run={tmp_path / 'axes'}"]
    status, out, err = call("train", *more, f"start_from={source}")
    assert status == 0, err
    gap = json.loads((tmp_path / "axes/origin.json").read_text())["output_compared"]["largest_difference"]
    assert gap > 0
    assert f"differs from the source's by at most {gap:.3g}" in out
    # Both networks are compared as they sample, and then the one trains.
    assert computed == [(False, True), (False, True), (True, True)]
    assert "samples differ further by trainer.precision 'bf16-mixed' (source: '32-true')" in out


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_under_a_strategy_that_splits_weights_it_is_the_same_training(
    source: Path, begun: Path, tmp_path: Path, world_dataset: Path, strategy: str
) -> None:
    arguments = [*tiny(world_dataset), *OTHER, *EVERY, FROZEN, f"strategy={strategy}", f"start_from={source}"]
    ranks = Ranks(2, tmp_path, [*arguments, "trainer.max_steps=2", "name=split"])
    ranks.finish()
    assert ranks.said().count("its samples equal the source's at the same seed") == 1
    for step in (0, 1):
        wanted, found = average(begun, step), average(tmp_path / "runs/split", step)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: name + text)


def test_every_weight_that_does_not_fit_is_named() -> None:
    wanted = {f"denoiser.blocks.{n}.mlp.weight": (8, 4) for n in range(3)} | {"denoiser.head.bias": (3,)}
    held = {"denoiser.blocks.0.mlp.weight": (8, 4), "denoiser.head.bias": (12,), "text.word.weight": (9, 4)}
    with pytest.raises(ValueError, match="found weights of another network, expected the 4 of this one") as told:
        check_names(held, wanted, [], Path("a.safetensors"))
    assert str(told.value).endswith(
        "; missing in the file: denoiser.blocks.{1-2}.mlp.weight; unknown to this network: text.word.weight; of "
        "another shape: denoiser.head.bias (12,), here (3,); fresh=[<pattern>] lets missing ones begin as new"
    )
    assert "\n" not in str(told.value)
    held = {name: shape for name, shape in wanted.items() if ".1." not in name}
    assert check_names(held, wanted, ["*.1.*"], Path("a.safetensors")) == ["denoiser.blocks.1.mlp.weight"]
    assert check_names(wanted, wanted, ["*.1.*"], Path("a.safetensors")) == []
    with pytest.raises(ValueError, match=r"fresh: found 'blocks.1.mlp', .* nearest: denoiser.blocks.1.mlp.weight"):
        check_names(held, wanted, ["blocks.1.mlp"], Path("a.safetensors"))


def test_names_are_told_together_and_lose_nothing() -> None:
    names = ["a.0.b", "a.1.b", "a.2.b", "a.5.b", "a.0.c", "plain", "x.3"]
    assert compact(names) == "a.{0-2,5}.b, a.0.c, plain, x.3"


def test_patterns_freeze_what_they_match_and_nothing_else() -> None:
    parts = torch.nn.ModuleDict({"denoiser": torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))})
    assert freeze(parts, []) == []
    assert freeze(parts, ["denoiser.0.*", "*.0.bias"]) == ["denoiser.0.weight", "denoiser.0.bias"]
    assert [p.requires_grad for p in parts.parameters()] == [False, False, True, True]
    freeze(parts, [], learns=lambda name: name != "denoiser.1.bias")
    assert [p.requires_grad for p in parts.parameters()] == [False, False, True, False]
    with pytest.raises(ValueError, match=r"freeze: found 'denoiser.7.wieght', .*; nearest: denoiser.1.weight"):
        freeze(parts, ["denoiser.7.wieght"])
    with pytest.raises(ValueError, match="found all 4 weights of the run in"):
        freeze(parts, ["*"])


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"denoiser": print})), "found no readable safetensors"),
    "torch": (lambda path: torch.save({"denoiser": torch.zeros(2)}, path), "found no readable safetensors"),
    "empty": (lambda path: path.write_bytes(b""), "found no readable safetensors"),
    "long header": (lambda path: path.write_bytes((1 << 60).to_bytes(8, "little") + b"{"), "found no readable"),
    "whole numbers": (lambda path: save_file({"a": torch.zeros(2, dtype=torch.int64)}, path), "values of type I64"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_of_anything_else_is_refused_and_nothing_of_it_is_run(kind: str, tmp_path: Path) -> None:
    make, message = HOSTILE[kind]
    make(tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=message) as told:
        Weights(find_source(str(tmp_path / "file.safetensors")).file)
    assert str(tmp_path / "file.safetensors") in str(told.value)


def test_a_piece_gets_its_values_and_one_that_the_file_lacks_keeps_its_own(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0).view(2, 3)}, tmp_path / "w.safetensors")
    held, absent = torch.zeros(3, dtype=torch.bfloat16), torch.ones(2)
    places = [Piece("a", WEIGHT, 2, held, (2, 3)), Piece("absent", WEIGHT, 0, absent, (2,))]
    Weights(tmp_path / "w.safetensors").fill(places)
    assert held.tolist() == [2, 3, 4]
    assert absent.tolist() == [1, 1]


@pytest.mark.parametrize("wrong", [[float("nan"), float("inf")], [1e300, -1e19]], ids=["not finite", "too large"])
def test_values_that_are_no_numbers_to_train_with_are_named_with_their_weight(
    wrong: list[float], tmp_path: Path
) -> None:
    weights = {"weight": torch.zeros(3, 2), "bias": torch.tensor([1e17, *wrong], dtype=torch.float64)}
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors: weight bias: found 2 of 3 values that are not finite"):
        Start(find_source(str(tmp_path / "w.safetensors"))).check(torch.nn.Linear(2, 3), (3, 4, 8, 8))


def test_mistakes_are_one_line_before_the_first_step(
    source: Path, call: Call, tmp_path: Path, world_dataset: Path
) -> None:
    damaged = Path(shutil.copytree(source, tmp_path / "damaged"))
    with (latest_checkpoint(damaged) / "average.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff\xff\xff\x7f")
    train = ["train", *tiny(world_dataset), "trainer.max_steps=1", f"run={tmp_path / 'run'}"]
    for more, message in (
        ([f"start_from={tmp_path / 'nowhere'}"], "start_from: found no weights in"),
        ([f"start_from={damaged}"], "found a damaged file"),
        (["fresh=[denoiser.*]"], "without start_from=, expected it"),
        ([f"start_from={source}", "model.depth=3"], "missing in the file: denoiser.blocks.2."),
        ([f"start_from={source}", "text.vocabulary=[a,ball]"], "text.vocabulary: found 2 words, expected the"),
        ([f"start_from={source}", "freeze=[denoiser.block.0.*]"], "nearest: denoiser.blocks.0."),
    ):
        status, _, err = call(*train, *more)
        assert (status, err.count("\n")) == (1, 1), err
        assert message in err
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_source_whose_configuration_was_edited_is_refused(
    source: Path, call: Call, tmp_path: Path, world_dataset: Path
) -> None:
    edited = Path(shutil.copytree(source, tmp_path / "edited"))
    config = (edited / "config.yaml").read_text()
    (edited / "config.yaml").write_text(config.replace("  depth: 2", "  depth: 3"))
    train = ["train", *tiny(world_dataset), "trainer.max_steps=1", f"run={tmp_path / 'run'}"]
    status, _, err = call(*train, f"start_from={edited}")
    assert (status, err.count("\n")) == (1, 1), err
    place = latest_checkpoint(edited) / "average.safetensors"
    assert f"{edited}/config.yaml: found a network with other weights than those in {place} (denoiser.blocks.2." in err
    # The command goes on as if nothing had been.
    status, _, err = call(*train, f"start_from={source}")
    assert status == 0, err
