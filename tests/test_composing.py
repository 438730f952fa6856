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


def both(verb: str, overrides: list[str], folder: Path = CONF) -> tuple[str, str, str]:
    """Return what Hydra composes or says: from the files, when it first remembers, from memory."""
    found = []
    with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        for prepare in (composing.forget, composing.remember, lambda: None):
            prepare()
            sweeps = any("," in override and "[" not in override for override in overrides)
            how = {"run_mode": RunMode.MULTIRUN if sweeps else RunMode.RUN, "validate_sweep_overrides": sweeps}
            try:
                cfg = GlobalHydra.instance().hydra.compose_config(verb, overrides, **how)
                found.append(OmegaConf.to_yaml(cfg) + str(OmegaConf.is_struct(cfg)))
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
    return tuple(found)


@pytest.mark.parametrize(("verb", "overrides"), COMMANDS, ids=lambda value: value if isinstance(value, str) else None)
def test_memory_gives_what_the_files_give(verb: str, overrides: list[str]) -> None:
    plain, first, again = both(verb, overrides)
    assert "hydra:" in plain
    assert plain == first == again


@pytest.mark.parametrize("wrong", ["optimizer=none_such", "+optimizer=adamw", "~optimizer=muon_twice", "lrr=1"])
def test_an_error_is_the_same(wrong: str) -> None:
    plain, first, again = both("train", ["experiment=bouncing_cpu", wrong])
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
    both("train", ["optimizer=adamw"], folder)
    path = folder / "optimizer" / "adamw.yaml"
    path.write_text(path.read_text() + "\nmore: 1\n")
    plain, first, again = both("train", ["optimizer=adamw"], folder)
    assert "more: 1" in plain
    assert plain == first == again
