"""A record is read as what it meant when it was written, whatever the defaults are today."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import tiny
from videodiff.data.samples.shards import ShardWriter, clip_sample
from videodiff.data.video.decode import probe
from videodiff.data.video.encode import encode
from videodiff.training.state.checkpoint import AVERAGE, latest_checkpoint
from videodiff.verbs.config import versions
from videodiff.verbs.config.build import load_run, read_run
from videodiff.verbs.config.schema import CLASSES

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of 80 shards of one clip each: more than are shuffled together by the default of today."""
    root = tmp_path_factory.mktemp("many") / "dataset"
    with ShardWriter(root, shard_bytes=1) as writer:
        for seed in range(80):
            frames = np.random.default_rng(seed).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
            video = encode(frames, 5.0, crf=30)
            writer.add(f"{seed:04d}", *clip_sample(video, probe(video), ["a ball"]))
    (root / "words.txt").write_text("a\nball\n")
    return root


def edit(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record of a run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def make_old(config: dict[str, Any]) -> None:
    """Take from a record everything that records of version 1 lacked."""
    del config["record"]
    for key in ("more", "weights", "window", "buckets", "stages", "batch", "captions", "fixed"):
        del config["data"][key]
    del config["text"]["long"], config["text"]["unknown"], config["optimizer"]["fused"]


def forget(run: Path, key: str) -> None:
    """Take the override of a key from a record: at the time there was no such key, and it meant the same."""
    path = run / "overrides.yaml"
    path.write_text(yaml.safe_dump([line for line in yaml.safe_load(path.read_text()) if not line.startswith(key)]))


def average(run: str) -> dict[str, torch.Tensor]:
    return load_file(latest_checkpoint(Path(run)) / AVERAGE)


def test_a_run_of_the_first_version_goes_on_to_the_bits_of_then(call: Call, cwd: Path, many_shards: Path) -> None:
    constant = ["schedule=constant"]
    recipe = [*tiny(many_shards), *constant, "data.window=null"]
    assert call("train", "name=whole", *recipe, "trainer.max_steps=4")[0] == 0
    assert call("train", "name=old", *recipe, "trainer.max_steps=2")[0] == 0
    edit(Path("runs/old"), make_old)
    forget(Path("runs/old"), "data.window")
    status, out, err = call("train", "resume=runs/old", "trainer.max_steps=4")
    assert status == 0, err
    assert "data.window: continues with None as in runs/old/config.yaml, today's default is 64" in out
    wanted, found = average("runs/whole"), average("runs/old")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    # By the default of today it would have been another training.
    assert call("train", "name=today", *recipe, "data.window=64", "trainer.max_steps=4")[0] == 0
    assert any(not torch.equal(wanted[key], value) for key, value in average("runs/today").items())


def test_a_network_is_built_by_what_a_lacking_key_meant(
    call: Call, cwd: Path, world_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the next version gave the network a key whose default is not what it did before."""
    recipe = [*tiny(world_dataset), "trainer.max_steps=2", "model.mlp_ratio=2.0"]
    assert call("train", "name=a", *recipe)[0] == 0
    edit(Path("runs/a"), lambda config: config["model"].pop("mlp_ratio"))
    forget(Path("runs/a"), "model.mlp_ratio")
    name = "videodiff.denoiser.transformer.SpaceTimeTransformer"
    monkeypatch.setattr(versions, "VERSION", versions.VERSION + 1)
    monkeypatch.setitem(versions.MEANT, versions.VERSION, {name: {"mlp_ratio": 2.0}})
    _, model, _ = load_run("runs/a")
    built = {f"denoiser.{key}": value for key, value in model.denoiser.state_dict().items()}
    wanted = average("runs/a")
    assert all(torch.equal(built[key].cpu(), wanted[key]) for key in wanted if key.startswith("denoiser."))
    status, out, err = call("train", "resume=runs/a", "trainer.max_steps=3")
    assert status == 0, err
    assert "model.mlp_ratio: continues with 2.0 as in runs/a/config.yaml, today's default is 4.0" in out
    assert yaml.safe_load(Path("runs/a/config.yaml").read_text())["model"]["mlp_ratio"] == 2.0


def test_a_record_tells_its_version_and_the_project_s(call: Call, cwd: Path, world_dataset: Path) -> None:
    assert call("train", "name=a", *tiny(world_dataset), "trainer.max_steps=1")[0] == 0
    head = yaml.safe_load(Path("runs/a/config.yaml").read_text())["record"]
    assert head == {"version": versions.VERSION, "videodiff": versions.__version__}
    assert "record" not in read_run("runs/a")
    newer = {"version": versions.VERSION + 1, "videodiff": "9.1"}
    edit(Path("runs/a"), lambda config: config.update(record=newer, model={"of": "a later version"}))
    for words in (["sample", "runs/a", "prompts=a ball"], ["evaluate", "runs/a"], ["train", "resume=runs/a"]):
        status, _, err = call(*words)
        assert status == 1
        assert err.count("\n") == 1
        assert f"runs/a/config.yaml: record.version: found {newer['version']}, expected at most" in err
        assert "install videodiff 9.1 or newer" in err
    status, _, err = call("inspect", "runs/a")
    assert (status, err.count("\n")) == (1, 1)


def test_keys_that_are_gone_are_left_out_of_older_records_only() -> None:
    name = "videodiff.diffusion.flow_map.FlowMap"
    keys = {"_target_": name, "floor": 0.4, "still": 0.4, "clean": 0.3, "difference": 0.5}
    tree = {"record": {"version": 8}, "objective": keys, "model": {"_target_": "another", "clean": 1}}
    told = versions.modern(tree, "config.yaml")
    assert told["model"] == tree["model"]
    assert told["objective"]["floor"] == 0.4
    added = (key for of in versions.MEANT.values() for key in of.get(name, {}))
    assert told["objective"].keys() == {"_target_", "floor", *added}
    assert told["objective"]["steps"] == [], "what it learned from then is no longer there"
    today = {"record": {"version": versions.VERSION}, "objective": keys}
    assert versions.modern(today, "config.yaml")["objective"] == keys


@pytest.mark.parametrize("version", [0, -1, "two", True, None, 1.5])
def test_a_version_that_is_none_is_an_error(version: object) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml: record\.version: found .*, expected a whole number from 1 to"):
        versions.version_of({"record": {"version": version}}, "config.yaml")


# What the classes that decide what is computed take at version 2. Who adds a key raises `VERSION` and says in `MEANT`
# what the class did before it; then the test is content, and nothing is added here.
KEYS_OF_2 = """
videodiff.denoiser.transformer.SpaceTimeTransformer: axes channels depth gate heads mlp_ratio patch text_width width
videodiff.diffusion.objective.Objective: caption_dropout floor levels loss path prediction
videodiff.diffusion.levels.NoiseLevels: base_shift base_tokens distribution mean policies pure std
videodiff.generation.settings.Generation: interval lead sampler scale shift steps
videodiff.codec.pixels.Pixels: channels
videodiff.codec.autoencoder.Autoencoder:
    dtype mean path_or_name revision slice_frames std subfolder tile tile_overlap
videodiff.text.words.Words: long max_words unknown vocabulary width
videodiff.text.transformers.Transformers:
    dtype kind layer max_length path_or_name revision subfolder tokenizer_subfolder
videodiff.data.loader.datamodule.clip_data:
    batch buckets budget cache_gib captions cost deliver disk_cache disk_cache_gib fixed frames global_batch height
    micro_batch more num_workers quarantine root seed skip_short stages stride timeout validation_clips validation_root
    weights width window
videodiff.training.optimizer.AdamW: betas ema_decay eps fused lr params weight_decay
videodiff.training.optimizer.Muon: betas ema_decay eps fused lr momentum params weight_decay
videodiff.training.schedule.constant: step total warmup
videodiff.training.schedule.warmup_stable_decay: decay floor step total warmup
"""


def test_a_new_key_comes_with_what_it_meant_before() -> None:
    for name, keys in (line.split(":") for line in KEYS_OF_2.replace("\n    ", " ").strip().splitlines()):
        meant = {key for number, of in versions.MEANT.items() if number > 2 for key in of.get(name, {})}
        assert set(CLASSES[name].keys) - set(keys.split()) - meant == set(), name


def test_what_keys_meant_is_of_classes_that_are_there() -> None:
    for of in versions.MEANT.values():
        for name, keys in of.items():
            assert keys.keys() <= set(CLASSES[name].keys), name


@pytest.mark.parametrize("former", versions.MOVED)
def test_a_class_that_has_moved_is_found_under_its_former_name(former: str) -> None:
    found = versions.moved({"callbacks": [{"_target_": former}]})["callbacks"][0]["_target_"]
    module, _, name = found.rpartition(".")
    assert found in CLASSES
    assert callable(getattr(importlib.import_module(module), name))
    assert former not in CLASSES
