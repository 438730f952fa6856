"""Tests compose configurations from memory: they are those that Hydra composes from the files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from tests.material import composing
from videodiff.verbs.config.groups import conf_dir

CONF = conf_dir()
COMMANDS = [
    ("train", ["experiment=bouncing_cpu", "data.root=x", "model.width=16", "~callbacks.samples"]),
    ("train", ["experiment=bouncing_cpu", "optimizer=adamw", "optimizer.lr=1e-3", "strategy=zero2", "data.root=x"]),
    ("train", ["data=webdataset", "+callbacks.more={a: 1}", "hydra.run.dir=/tmp", "schedule={warmup: 3}"]),
    ("train", ["optimizer=adamw,muon", "model.width=16,32"]),
    ("evaluate", ["run=x", "metric=[consistency,warping]"]),
    ("prep", ["source=x", "engine=ray"]),
    ("sample", []),
]


@pytest.fixture(autouse=True)
def remembering() -> Iterator[None]:
    """Leave Hydra as the other tests have it."""
    GlobalHydra.instance().clear()
    yield
    composing.remember()


Command = tuple[str, list[str]]


def three_times(commands: list[Command], folder: Path = CONF) -> tuple[list[str], ...]:
    """Return what Hydra composes or says for each command: from the files, when it first remembers, from memory."""
    found = []
    with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        for prepare in (composing.forget, composing.remember, lambda: None):
            prepare()
            found.append([composed(*command) for command in commands])
    return tuple(found)


def composed(verb: str, overrides: list[str]) -> str:
    """Return the configuration of a command, or the error."""
    sweeps = any("," in override and "[" not in override for override in overrides)
    how = {"run_mode": RunMode.MULTIRUN if sweeps else RunMode.RUN, "validate_sweep_overrides": sweeps}
    try:
        cfg = GlobalHydra.instance().hydra.compose_config(verb, overrides, **how)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return OmegaConf.to_yaml(cfg) + str(OmegaConf.is_struct(cfg))


def test_memory_gives_what_the_files_give_and_takes_no_command_for_another() -> None:
    for plain, first, again in zip(*three_times(COMMANDS), strict=True):
        assert "hydra:" in plain
        assert plain == first == again


def test_an_error_is_the_same() -> None:
    wrong = ["optimizer=none_such", "+optimizer=adamw", "~optimizer=muon_twice", "lrr=1"]
    for plain, first, again in zip(
        *three_times([("train", ["experiment=bouncing_cpu", w]) for w in wrong]), strict=True
    ):
        assert "hydra:" not in plain
        assert plain == first == again


def test_what_one_command_changes_the_next_one_does_not_see() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("sample")
        wanted = OmegaConf.to_yaml(cfg)
        OmegaConf.set_struct(cfg, False)
        cfg.steps, cfg.other = 10**6, {}
        assert OmegaConf.to_yaml(compose("sample")) == wanted


def test_files_of_another_folder_are_read_each_time(tmp_path: Path) -> None:
    folder = shutil.copytree(CONF, tmp_path / "conf")
    command = ("train", ["optimizer=adamw"])
    three_times([command], folder)
    path = folder / "optimizer" / "adamw.yaml"
    path.write_text(path.read_text() + "\nmore: 1\n")
    plain, first, again = three_times([command], folder)
    assert "more: 1" in plain[0]
    assert plain == first == again
