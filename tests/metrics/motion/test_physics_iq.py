"""Physics-IQ's numbers, on squares whose overlap is known."""

from __future__ import annotations

import numpy as np
import pytest

from videodiff.metrics.evaluation import evaluate
from videodiff.metrics.metric import CONTINUATION, Case
from videodiff.metrics.motion.physics_iq import Scenario, compared, motion_masks, overlap, physics_iq, scenario, score


def blinking(columns: slice, side: int = 64, frames: int = 6) -> np.ndarray:
    """Return a grey clip in which a square 20 pixels high appears in the last frames."""
    clip = np.full((frames, side, side, 3), 100, np.uint8)
    clip[2:, 20:40, columns] = 255
    return clip


def test_what_appears_is_marked_and_the_first_frame_is_the_background() -> None:
    masks = motion_masks(blinking(slice(10, 30)))
    assert not masks[:2].any()
    # A blur of 5 pixels reaches 2 beyond the square.
    rows, columns = np.nonzero(masks[2])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((20, 39, 10, 29), abs=2)
    assert masks[2, 22:38, 12:28].all()


def test_the_average_follows_until_nothing_differs() -> None:
    # 155 levels fall by 0.7 a frame: 108.5, 76, 53, 37, 26, 18, 13, 8.9: below 10 from the eighth frame on.
    masks = motion_masks(blinking(slice(10, 30), frames=12))
    assert [bool(mask[30, 20]) for mask in masks] == [False] * 2 + [True] * 7 + [False] * 3


def test_a_copy_agrees_in_everything_and_what_lies_elsewhere_in_nothing() -> None:
    one, other = blinking(slice(4, 24)), blinking(slice(40, 60))
    assert compared(one, one) == {"spatial_iou": 1, "spatiotemporal_iou": 1, "weighted_spatial_iou": 1, "mse": 0}
    found = compared(one, other)
    # The first two of six frames have no motion in either clip, which counts as agreement.
    assert (found["spatial_iou"], found["weighted_spatial_iou"]) == (0, 0)
    assert found["spatiotemporal_iou"] == pytest.approx(2 / 6)
    assert found["mse"] == pytest.approx(4 / 6 * 2 * 400 / 64**2 * (155 / 255) ** 2)


def test_half_an_overlap_is_a_third_of_the_union() -> None:
    found = compared(blinking(slice(10, 30)), blinking(slice(20, 40)))
    assert found["spatial_iou"] == pytest.approx(1 / 3, abs=0.06)


def test_a_weight_says_how_often() -> None:
    assert overlap(np.array([0.5, 0.25, 0.0]), np.array([0.25, 0.25, 0.5])) == pytest.approx(0.5 / 1.25)
    assert overlap(np.zeros(3), np.zeros(3)) == 1.0


def test_a_second_take_as_the_sample_has_the_full_score_and_a_still_clip_little() -> None:
    first, second = blinking(slice(10, 30)), blinking(slice(13, 33))
    assert score([scenario(second, first, second)]) == pytest.approx(100.0)
    assert score([scenario(np.full_like(first, 100), first, second)]) < 30


def test_the_score_is_the_ratio_of_means_less_the_excess_of_the_error() -> None:
    def numbers(overlaps: float, mse: float) -> dict[str, float]:
        return dict.fromkeys(("spatial_iou", "spatiotemporal_iou", "weighted_spatial_iou"), overlaps) | {"mse": mse}

    scenarios = [Scenario(numbers(0.2, 0.05), numbers(0.5, 0.01)), Scenario(numbers(0.4, 0.03), numbers(0.7, 0.01))]
    assert score(scenarios) == pytest.approx(100 * (0.3 / 0.6 - (0.04 - 0.01)))
    assert score([Scenario(numbers(0.01, 0.9), numbers(0.9, 0.0))]) == 0.0


def test_takes_that_have_nothing_in_common_and_other_shapes_are_refused() -> None:
    one = blinking(slice(4, 24))
    with pytest.raises(ValueError, match="expected takes of one scenario"):
        score([scenario(one, one, blinking(slice(40, 60)))])
    with pytest.raises(ValueError, match="expected one shape"):
        compared(one, one[:3])


def test_a_continuation_stands_beside_the_last_frame_held() -> None:
    truth = blinking(slice(10, 30))
    found = evaluate({"iq": physics_iq}, [Case("a", truth, truth, "", 8.0, 1, None)], {CONTINUATION: [truth]})
    assert found["physics_iq_spatial_iou"] == 1.0
    held = next(row for row in found["table"] if row["name"] == "last frame held")
    assert held["physics_iq_spatial_iou"] == 0.0
