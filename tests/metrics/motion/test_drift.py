"""What becomes of a clip, second by second, on clips whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from videodiff.metrics.motion.drift import Drift, sharpness
from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.scene import PALETTE, render


def scene_of_one_ball() -> tuple[str, np.ndarray]:
    world = Bouncing(frames=20, balls={1: 1.0}, split="all")
    scene = world.scene(3)
    return scene.caption, render(scene, 32)


def measured(caption: str, frames: np.ndarray) -> dict:
    drift = Drift(caption, 5.0)
    assert np.array_equal(np.stack(list(drift(frames))), frames)
    return drift.result()


def test_a_true_clip_does_not_drift() -> None:
    caption, frames = scene_of_one_ball()
    found = measured(caption, frames)
    assert (found["frames"], found["seconds"], len(found["by_second"])) == (20, 4.0, 4)
    assert found["count_accuracy"] == found["colour_accuracy"] == 1.0
    assert found["size_ratio"] == pytest.approx(1, abs=0.1)
    assert found["last_sharpness_ratio"] == pytest.approx(1, abs=0.1)


def test_each_second_tells_what_is_wrong_in_it() -> None:
    caption, frames = scene_of_one_ball()
    frames = frames.copy()
    # In the second second there is no ball, in the third another colour for two of five frames.
    frames[5:10] = frames.max()
    ball = (frames[10:12].astype(int) - frames.max()).min(-1) < -20
    frames[10:12][ball] = PALETTE["red" if "red" not in caption else "blue"]
    rows = measured(caption, frames)["by_second"]
    assert [row["count_accuracy"] for row in rows] == [1.0, 0.0, 1.0, 1.0]
    assert [row["colour_accuracy"] for row in rows] == pytest.approx([1.0, 0.0, 0.6, 1.0])
    assert rows[1]["size_ratio"] == 0.0
    assert rows[1]["sharpness_ratio"] == 0.0


def test_any_video_has_sharpness_and_brightness() -> None:
    frames = np.zeros((10, 8, 12, 3), np.uint8)
    frames[:, ::2] = 100
    frames[5:, ::2], frames[5:, 1::2] = 80, 40
    found = measured("a dog on a beach", frames)
    assert "count_accuracy" not in found
    # Stripes that differ by 40 instead of 100 levels, and are 10 levels brighter.
    assert found["last_sharpness_ratio"] == pytest.approx(0.4)
    assert found["last_brightness_change"] == pytest.approx(10)


def test_the_laplacian_of_a_single_point() -> None:
    image = np.zeros((5, 5), np.float32)
    image[2, 2] = 9
    assert sharpness(image) == pytest.approx((4 * 9 + 4 * 9) / 9)
