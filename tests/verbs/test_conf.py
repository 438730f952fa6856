"""Every file in conf/ composes, and what it names is built."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from tests.conftest import tiny
from videodiff.cli import VERBS, conf_dir, groups

CONF = conf_dir()
FILES = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
OPTIONS = [file for file in FILES if "/" in file and not file.startswith(("experiment/", "hydra/"))]
# Their weights come from a hub: what their files name is checked against the signature here, and loaded for real from
# small models of the same classes in the tests of the two rooms.
DOWNLOADED = {"codec/sd_vae", "codec/wan_vae", "text/clip", "text/t5", "text/umt5"}
# Built with what the train verb adds.
COMPLETED = {"trainer", "callbacks"}


def composed(verb: str, overrides: list[str]) -> DictConfig:
    """Return the composed configuration of a verb."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(verb, overrides=overrides)


def verb_of(group: str) -> str:
    """Return a verb that chooses from this group."""
    return next(verb for verb in ("train", *VERBS) if group in groups(verb))


def targets(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every part of a configuration that names something to call."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from targets(value)


def check_arguments(part: dict[str, Any]) -> None:
    """Raise where a part does not fit the signature of what it names."""
    arguments = {key: value for key, value in part.items() if not key.startswith("_")}
    signature = inspect.signature(get_object(part["_target_"]))
    signature.bind_partial(**arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_configuration(verb: str) -> None:
    assert composed(verb, []) is not None


@pytest.mark.parametrize("file", OPTIONS)
def test_a_choice_of_a_group_composes_and_is_built(file: str, world_dataset: Path, tmp_path: Path) -> None:
    group, option = file.removesuffix(".yaml").rsplit("/", 1)
    overrides = [f"{group}={option}"]
    if verb_of(group) == "train":
        data = f"data.urls={world_dataset}/*.tar" if option == "webdataset" else f"data.root={world_dataset}"
        overrides += [data, f"run={tmp_path}"]
    cfg = composed(verb_of(group), overrides)
    if group == "text":
        from videodiff.verbs.config.build import fill_text

        fill_text(cfg)
    config = OmegaConf.to_container(cfg.get(group, OmegaConf.create({})), resolve=True)
    for part in targets(config):
        check_arguments(part)
    if f"{group}/{option}" not in DOWNLOADED and group not in COMPLETED:
        with torch.device("meta") if group == "model" else torch.device("cpu"):
            parts = (config or {}).values()
            built = instantiate(config) if "_target_" in (config or {}) else [instantiate(part) for part in parts]
        assert built is not None


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("hydra/launcher/")])
def test_a_launcher_composes_and_is_built(file: str) -> None:
    GlobalHydra.instance().clear()
    overrides = [f"hydra/launcher={Path(file).stem}", "data.root=x"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", overrides=overrides, return_hydra_config=True)
    launcher = instantiate(cfg.hydra.launcher)
    settings = launcher.options if file.endswith("slurm.yaml") else launcher.params
    assert settings.get("ntasks_per_node", settings.get("tasks_per_node")) == cfg.trainer.devices


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("experiment/")])
def test_a_recipe_composes_and_its_model_is_built(file: str, world_dataset: Path, tmp_path: Path) -> None:
    overrides = [f"experiment={Path(file).stem}", f"data.root={world_dataset}", f"run={tmp_path}"]
    cfg = composed("train", overrides)
    config = OmegaConf.to_container(cfg, resolve=True)
    for part in targets(config):
        check_arguments(part)
    for key in ("objective", "sampler", "path", "optimizer", "schedule", "strategy", "data"):
        assert instantiate(config[key]) is not None
    channels = {"videodiff.codec.pixels.Pixels": 3}.get(config["codec"]["_target_"], 4)
    with torch.device("meta"):
        denoiser = instantiate(config["model"], channels=channels, text_width=config["text"].get("width", 4096))
    assert sum(p.numel() for p in denoiser.parameters()) > 0


def test_the_policies_of_a_recipe_are_those_that_it_writes_and_no_others() -> None:
    for file in (file for file in FILES if file.startswith("experiment/")):
        written = OmegaConf.select(OmegaConf.load(CONF / file), "objective.levels.policies")
        # A recipe that begins with another one adds to its policies.
        if written is not None and "bouncing_cpu" not in OmegaConf.load(CONF / file).defaults:
            cfg = composed("train", [f"experiment={Path(file).stem}", "data.root=x"])
            assert cfg.objective.levels.policies == written, file


def test_a_recipe_is_taken_apart_into_objects_by_the_train_verb(world_dataset: Path, tmp_path: Path) -> None:
    from videodiff.verbs.config.build import build_data, build_model, fill_text
    from videodiff.verbs.train.command import build_trainer

    cfg = composed("train", [*tiny(world_dataset), f"run={tmp_path}", "data.micro_batch=1", "logger=[csv,tensorboard]"])
    fill_text(cfg)
    trainer = build_trainer(cfg, build_model(cfg), build_data(cfg).accumulate(1))
    assert trainer.accumulate_grad_batches == cfg.data.global_batch
    assert [type(logger).__name__ for logger in trainer.loggers] == ["CSVLogger", "Board"]


def test_weights_and_biases_needs_no_account(world_dataset: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = composed("train", [f"data.root={world_dataset}", f"run={tmp_path}", "logger=wandb"])
    logger = instantiate(cfg.logger.wandb)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.experiment.finish()
    assert logger.experiment.offline
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_a_part_that_does_not_fit_is_noticed() -> None:
    with pytest.raises(TypeError, match="lenght"):
        check_arguments({"_target_": "videodiff.worlds.bouncing.Bouncing", "lenght": 3})


def test_partial_objects_take_what_training_gives_them() -> None:
    cfg = composed("train", ["optimizer=muon", "text.vocabulary=[a]", "data.root=x"])
    optimizer, schedule = instantiate(cfg.optimizer), instantiate(cfg.schedule)
    assert isinstance(optimizer, functools.partial)
    assert 0 < schedule(0, 100) <= 1
