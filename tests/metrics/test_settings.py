"""What decides a figure: its settings, and weights by their content."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from videodiff.metrics.consistency import consistency
from videodiff.metrics.metric import Case, Quantity, metric
from videodiff.metrics.networks.pictures import clip_similarity
from videodiff.metrics.sets.video import fvd
from videodiff.metrics.settings import content, deciding


@pytest.fixture(autouse=True)
def _fresh() -> None:
    content.cache_clear()


def test_settings_that_change_a_figure_are_told_and_files_by_their_content(tmp_path: Path) -> None:
    network = tmp_path / "i3d.pt"
    network.write_bytes(b"weights")
    weights = {"name": "i3d.pt", "sha256": hashlib.sha256(b"weights").hexdigest()[:16]}
    chosen = fvd.with_settings(path=str(network), device="cpu", batch=2, resamples=5, least=3)
    assert deciding(chosen) == {"path": weights, "crop": False}
    assert deciding(chosen.with_settings(crop=True)) == {"path": weights, "crop": True}
    assert deciding(consistency) == {}


def test_a_model_is_known_by_the_files_that_it_is_read_from(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "config.json").write_text("{}")
    (one / "model.safetensors").write_bytes(b"weights")

    def sha256(folder: Path) -> str:
        content.cache_clear()
        return deciding(clip_similarity.with_settings(path=str(folder)))["path"]["sha256"]

    first, other = sha256(one), Path(shutil.copytree(one, tmp_path / "other"))
    (other / "README.md").write_text("the same model for another library")
    (other / "tf_model.h5").write_bytes(b"weights")
    assert sha256(other) == first
    (one / "model.safetensors").write_bytes(b"changed")
    assert sha256(one) != first


MINE = """
from videodiff.metrics.metric import Case, Quantity, metric

@metric({"number": Quantity("higher")})
def mine(case: Case, mode: str = "slow", *, law: object = len, weights: tuple[float, ...] = (1.0,)) -> dict:
    return {"number": 0.0}

@metric({"number": Quantity("higher")})
def another(case: Case, mode: str = "slow") -> dict:
    return {"number": 1.0}
"""


def module_of(path: Path, text: str) -> Any:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = made
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def my_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "my_metrics", None)
    return module_of(tmp_path / "my_metrics.py", MINE)


def test_functions_of_ones_own_that_give_one_number_are_told_apart(my_metrics: Any, tmp_path: Path) -> None:
    digest = hashlib.sha256(MINE.encode()).hexdigest()[:16]
    assert deciding(my_metrics.mine)["_target_"] == f"my_metrics.mine {digest}"
    assert deciding(my_metrics.another)["_target_"] == f"my_metrics.another {digest}"
    assert deciding(my_metrics.mine.with_settings(mode="fast"))["_target_"] == f"my_metrics.mine {digest}"
    content.cache_clear()
    changed = module_of(tmp_path / "my_metrics.py", MINE.replace("0.0", "0.5"))
    assert deciding(changed.mine)["_target_"] != f"my_metrics.mine {digest}"


def test_an_object_that_measures_is_named_by_its_class() -> None:
    class Mine:
        def __call__(self, case: Case) -> dict[str, float]:
            return {"number": 0.0}

    named = deciding(metric({"number": Quantity("higher")})(Mine()))["_target_"]
    assert "test_an_object_that_measures_is_named_by_its_class.<locals>.Mine " in named


@pytest.mark.parametrize("text", ["fast", "a\0b", "x" * 5000, ""], ids=["a word", "no name", "long", "empty"])
def test_a_text_that_names_no_file_is_a_text(text: str, my_metrics: Any) -> None:
    mine = my_metrics.mine
    own = {"_target_": deciding(mine)["_target_"]}
    assert deciding(mine) == {"mode": "slow"} | own
    for chosen in (
        mine.with_settings(mode=text, weights=[0.5]),
        mine.with_settings(mode=text).with_settings(weights=[0.5]),
    ):
        assert deciding(chosen) == {"mode": text, "weights": "[0.5]"} | own
