"""The study of physics: its cells are configurations that exist, and its tables say what was measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from videodiff.verbs.config.groups import conf_dir
from videodiff.verbs.config.schema import faults

STUDY = Path(__file__).parents[2] / "bench" / "physics" / "study.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study", STUDY)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up.
    sys.modules["study"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", ["SMALL", "FULL"])
def test_every_cell_is_a_configuration_that_exists(study: ModuleType, size: str) -> None:
    scale = getattr(study, size)
    cells = study.cells(scale)
    assert len({cell.name for cell in cells}) == len(cells)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        for cell in cells:
            if cell.world == "uniform":
                words = [*scale.models[cell.size], *scale.training, *cell.changes, "data.root=x"]
                cfg = compose("train", overrides=["experiment=phyworld_study", *words])
                assert faults("train", OmegaConf.to_container(cfg, resolve=True)) == []


def test_an_ablation_changes_what_it_is_called_after(study: ModuleType) -> None:
    found = {cell.variant: cell.changes for cell in study.cells(study.SMALL) if cell.variant != "base"}
    assert found["v"] == ("objective.prediction=v", "objective.loss=v")
    assert found["full attention"] == ("model.axes=[spacetime]",)
    assert found["AdamW"][0] == "optimizer=adamw"


def test_a_table_has_the_error_over_clips_of_one_seed_and_over_seeds_of_several(study: ModuleType) -> None:
    def run(value: float) -> dict:
        figures = {"velocity_error": value, "velocity_error_stderr": 0.25, "table": [{"name": "model"}]}
        return dict.fromkeys(study.SPLITS, figures)

    base = study.Cell("uniform", "small", "200")
    lines = list(study.table({base: [run(0.5)]}, study.SMALL))
    assert lines[0] == study.SMALL.said
    assert "| small, 200 clips | 1 | 0.500 ± 0.250 | 0.500 ± 0.250 | – | – | – | – |" in lines
    lines = list(study.table({base: [run(0.5), run(0.7), run(0.6)]}, study.SMALL))
    # The standard error of 0.5, 0.6 and 0.7: 0.1 / sqrt(3).
    assert "| small, 200 clips | 3 | 0.600 ± 0.058 | 0.600 ± 0.058 | – | – | – | – |" in lines
    assert "| DiT-L | 3m | 0.012 | 0.427 |" in lines
