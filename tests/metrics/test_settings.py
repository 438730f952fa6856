"""What decides a figure: its settings, and weights by their content."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

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


@pytest.mark.parametrize("text", ["fast", "a\0b", "x" * 5000, ""], ids=["a word", "no name", "long", "empty"])
def test_a_text_that_names_no_file_is_a_text(text: str) -> None:
    @metric({"number": Quantity("higher")})
    def mine(case: Case, mode: str = "slow", *, law: object = len, weights: tuple[float, ...] = (1.0,)) -> dict:
        return {"number": 0.0}

    assert deciding(mine) == {"mode": "slow"}
    for chosen in (
        mine.with_settings(mode=text, weights=[0.5]),
        mine.with_settings(mode=text).with_settings(weights=[0.5]),
    ):
        assert deciding(chosen) == {"mode": text, "weights": "[0.5]"}
