"""A metric of a whole set, from weights to the figures of evaluation.json."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.material.networks.small import Darkness, MeanColour, SmallI3D, save_script
from videodiff.metrics.consistency import consistency
from videodiff.metrics.evaluation import evaluate, usable
from videodiff.metrics.metric import CONTINUATION, TEXT_TO_VIDEO, Case
from videodiff.metrics.sets.set_metric import SetMetric
from videodiff.metrics.sets.video import cdfvd, fvd, jedi
from videodiff.metrics.weights import NOTHING


def cases(count: int, frames: int = 4, side: int = 8) -> list[Case]:
    rng = np.random.default_rng(0)
    made = rng.integers(0, 200, (count, 1, 1, 1, 3)) + rng.integers(0, 20, (count, frames, side, side, 3))
    return [Case(f"c{i}", clip, clip, "", 8.0, 1, None) for i, clip in enumerate(made.astype(np.uint8))]


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> SetMetric:
    """Return a distance in features that can be computed by hand: the mean of each colour, in [0, 1]."""
    path = save_script(MeanColour(), tmp_path_factory.mktemp("network") / "colour.pt")
    return cdfvd.with_settings(path=str(path), resamples=20)


def test_a_shift_of_all_clips_is_its_square(colour: SetMetric) -> None:
    clips = cases(30)
    same = [case.truth for case in clips]
    brighter = [case.truth + np.uint8(25) for case in clips]
    found = evaluate({"mine": colour}, clips, {CONTINUATION: brighter, TEXT_TO_VIDEO: same})
    assert found["continuation_cdfvd"] == pytest.approx(3 * (25 / 255) ** 2, rel=1e-4)
    assert found["text_to_video_cdfvd"] == pytest.approx(0.0, abs=1e-6)
    assert found["truth_cdfvd"] > 1e-4
    weights = Path(colour.settings["path"])
    told = {"name": "colour.pt", "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}
    meaning = {"better": "lower", "unit": "", "range": [0.0, None], "settings": {"crop": False, "path": told}}
    assert found["metrics"]["continuation_cdfvd"] == meaning
    for name in ("continuation_cdfvd", "truth_cdfvd"):
        low, high = found["intervals"][name]
        assert low <= high
    # A sample and its truth are drawn together: the shift between them is the same in all clips.
    assert found["continuation_cdfvd_stderr"] == pytest.approx(0.0, abs=1e-6)
    assert found["truth_cdfvd_stderr"] > 1e-4


def test_missing_weights_cost_their_own_metric_and_say_where_they_come_from(tmp_path: Path) -> None:
    metrics = {"consistency": consistency, "fvd": fvd, "jedi": jedi.with_settings(path=str(tmp_path / "jepa"))}
    left, reasons = usable(metrics)
    assert list(left) == ["consistency"]
    assert reasons["fvd"] == (
        "metric.fvd: path: found null, expected a TorchScript file of I3D (i3d_torchscript.pt), from "
        "github.com/universome/stylegan-v, src/metrics"
    )
    assert f"found none at {tmp_path}/jepa, expected a TorchScript file or a folder of transformers" in reasons["jedi"]
    (tmp_path / "jepa").mkdir()
    assert "found a folder without config.json" in usable(metrics)[1]["jedi"]
    with pytest.raises(ValueError, match=r"found nothing that can be measured: metric\.fvd: path: found null"):
        usable({"fvd": fvd})


def test_too_few_clips_are_refused_with_the_number_needed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = str(save_script(SmallI3D(), tmp_path / "i3d.pt"))
    metrics = {"consistency": consistency, "fvd": fvd.with_settings(path=path)}
    left, reasons = usable(metrics, cases(6, frames=10, side=16)[0], 6)
    assert list(left) == ["consistency"]
    assert reasons["fvd"] == (
        "metric.fvd: found 6 clips, expected at least 7, more rows than its 6 features; clips=7, or least=6 to measure "
        "fewer, which makes it larger"
    )
    assert usable({"fvd": fvd.with_settings(path=path)}, cases(7, frames=10, side=16)[0], 7)[1] == {}
    assert usable({"fvd": fvd.with_settings(path=path, least=6)}, cases(6, frames=10, side=16)[0], 6)[1] == {}


def test_the_number_needed_counts_the_rows_of_whole_clips() -> None:
    def six(clips: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.concatenate([clip.mean(axis=(1, 2)), clip.std(axis=(1, 2))], -1) for clip in clips])

    # Seven rows are three clips of two frames and a half.
    mine = SetMetric("mine", fvd.quantity, six, fvd.distance, NOTHING)
    first = cases(1, frames=2)[0]
    assert (
        "expected at least 4, more rows than its 6 features"
        in usable({"c": consistency, "mine": mine}, first, 3)[1]["mine"]
    )
    assert usable({"mine": mine}, first, 4)[1] == {}


def test_one_clip_has_no_error_and_is_refused_however_many_rows_it_has() -> None:
    by_frame = SetMetric(
        "mine", fvd.quantity, lambda clips: np.stack([clip.mean(axis=(1, 2)) for clip in clips]), fvd.distance, NOTHING
    )
    metrics, first = {"consistency": consistency, "mine": by_frame}, cases(1, frames=16)[0]
    assert usable(metrics, first, 1)[1] == {"mine": "metric.mine: found 1 clip, expected at least 2; clips=2"}
    assert usable(metrics, first, 2)[1] == {}
    # Least cannot be 1.
    reasons = usable({"consistency": consistency, "jedi": replace(by_frame, fewest=200)}, first, 1)[1]
    assert reasons["jedi"] == "metric.jedi: found 1 clip, expected at least 200; clips=200"


def test_clips_that_a_network_cannot_take_cost_their_metric_before_anything_is_sampled(tmp_path: Path) -> None:
    path = str(save_script(SmallI3D(), tmp_path / "i3d.pt"))
    left, reasons = usable({"consistency": consistency, "fvd": fvd.with_settings(path=path)}, cases(8)[0], 8)
    assert list(left) == ["consistency"]
    assert reasons["fvd"] == "metric.fvd: found clips of 4 frames, expected at least 10 for I3D"


def test_features_that_are_not_finite_cost_their_metric_and_name_the_clip(tmp_path: Path) -> None:
    path = save_script(Darkness(), tmp_path / "darkness.pt")
    metrics = {"consistency": consistency, "mine": cdfvd.with_settings(path=str(path), resamples=2)}
    clips, said = cases(6), []
    made = [case.truth for case in clips]
    made[4] = np.full_like(made[4], 255)
    found = evaluate(metrics, clips, {TEXT_TO_VIDEO: made}, said.append)
    reason = "metric.mine: clip c4: found features that are not finite"
    assert (found["left_out"], said) == ({"mine": reason}, [f"left out: {reason}"])
    assert found["text_to_video_temporal_flickering_score"] > 0
    assert not [name for name in found["metrics"] if "cdfvd" in name]
    # Before anything is sampled, the network is tried on the first clip.
    white = clips[0]._replace(frames=made[4])
    assert usable(metrics, white)[1] == {"mine": "metric.mine: clip c0: found features that are not finite"}


def test_a_distance_that_cannot_be_computed_costs_its_metric() -> None:
    def never(one: np.ndarray, other: np.ndarray) -> float:
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    mine = SetMetric("mine", fvd.quantity, lambda clips: np.zeros((len(clips), 1, 1)), never, NOTHING)
    clips = cases(3)
    found = evaluate({"consistency": consistency, "mine": mine}, clips, {CONTINUATION: [one.truth for one in clips]})
    assert found["left_out"] == {"mine": "metric.mine: Eigenvalues did not converge"}
    assert found["continuation_temporal_flickering_score"] > 0


@pytest.mark.parametrize("settings", [{"least": 1}, {"resamples": 0}, {"resamples": True}, {"least": "many"}])
def test_settings_that_cannot_be_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: found .*, expected at least 2"):
        fvd.with_settings(**settings)
