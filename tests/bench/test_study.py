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


def test_the_page_gets_what_is_measured_and_names_what_is_not(study: ModuleType, tmp_path: Path) -> None:
    def run(value: float) -> dict:
        row = {"velocity_error": value, "velocity_error_stderr": 0.25, "phyworld_velocity_error": value / 2}
        figures = {**row, "table": [{"name": "model", **row}, {"name": "last frame held", "velocity_error": 2.0}]}
        return {**dict.fromkeys(study.SPLITS, figures), "seed": 0, "commit": "0123456789", "seconds": 61.4}

    page = tmp_path / "page.md"
    marks = ("ablations", "tasks", "left")
    page.write_text("".join(f"about {mark}\n<!-- {mark} -->\nold\n<!-- end {mark} -->\n" for mark in marks) + "end\n")
    done = {
        study.Cell("uniform", "small", "3000"): [run(0.5)],
        study.Cell("collision", "small", "200"): [run(1.5)],
        next(cell for cell in study.cells(study.SMALL) if cell.variant == "eps"): [run(0.75)],
    }
    study.write_page(page, done, study.SMALL)
    text = page.read_text()
    figures = "0.750 ± 0.250 | 0.750 ± 0.250 | 0.375 | 0.375"
    assert f"| eps predicted, loss on eps | `uniform/small/3000/eps` | 0 | 0123456 | {figures} | 61 |\n" in text
    figures = "1.500 ± 0.250 | 1.500 ± 0.250 | 0.750 | 0.750"
    assert f"| collision, small, 200 clips | `collision/small/200/base` | 0 | 0123456 | {figures} | 61 |\n" in text
    assert text.count("| collision: last frame held | | | | 2.000 | 2.000 | – | – | |\n") == 1
    assert text.count("`uniform/small/3000/base`") == 2
    assert "`uniform/small/3000/v`" in text.partition("Not run yet: ")[2]
    assert "`uniform/small/3000/eps`" not in text.partition("Not run yet: ")[2]
    assert "old" not in text
    assert [line for line in text.splitlines() if line.startswith(("about", "end"))] == [
        *(f"about {mark}" for mark in marks),
        "end",
    ]
    study.write_page(page, done, study.SMALL)
    assert page.read_text() == text
