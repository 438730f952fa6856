"""The shape and the rate of a clip: asked for, else as training had them."""

from __future__ import annotations

from pathlib import Path

import pytest

from videodiff.codec.pixels import Pixels
from videodiff.data.loader.trained import Trained
from videodiff.data.samples.manifest import Manifest
from videodiff.generation.shape import (
    choose_rate,
    choose_shape,
    least_frames,
    most_frequent_rate,
    shapes_of_run,
    unlike_rate,
    unlike_training,
)

WIDE = Trained(0, 16, 32, 64, (2,), 0.6, {12.0: 1.0})
TALL = Trained(0, 8, 64, 32, (1,), 0.4, {24.0: 0.7, 12.0: 0.3})


def test_the_usual_shape_is_taken_and_what_is_asked_for_chooses_another() -> None:
    assert choose_shape([WIDE, TALL], {}) == (16, 32, 64)
    assert choose_shape([WIDE, TALL], {"frames": 8}) == (8, 64, 32)
    assert choose_shape([WIDE, TALL], {"frames": 5, "height": 32}) == (5, 32, 64)
    assert unlike_training([WIDE, TALL], (8, 64, 32)) is None
    assert unlike_training([WIDE, TALL], (5, 32, 64)) == (
        "5 x 32 x 64 is no shape of the training, which had 16 x 32 x 64, 8 x 64 x 32"
    )


def test_the_rate_is_the_one_asked_for_or_trained_or_given() -> None:
    assert choose_rate(7, [WIDE], WIDE.shape) == 7.0
    assert choose_rate(None, [WIDE, TALL], WIDE.shape) == 12.0
    # Several rates: the rate of the video over the stride, else nobody knows which.
    assert choose_rate(None, [WIDE, TALL], TALL.shape, given=30.0) == 30.0
    assert most_frequent_rate(TALL) == 24.0
    # A single frame has no rate to ask for: pictures of another size tell the network's, else the clips do.
    picture = Trained(0, 1, 48, 48, (1,), 0.2, {25.0: 0.6, 12.0: 0.4})
    assert choose_rate(None, [WIDE, picture, TALL], (1, 32, 64)) == 25.0
    assert choose_rate(None, [TALL], (1, 64, 32)) == 24.0
    with pytest.raises(ValueError, match="a dataset that cannot be read now"):
        choose_rate(None, [TALL._replace(rates={})], (1, 64, 32))
    with pytest.raises(ValueError, match=r"trained on clips of 24 \(70%\), 12 \(30%\)"):
        choose_rate(None, [WIDE, TALL], TALL.shape)
    for asked in (0, -1, 1000, float("nan")):
        with pytest.raises(ValueError, match="fps: found"):
            choose_rate(asked, [WIDE], WIDE.shape)


def test_a_rate_beyond_those_of_the_training_is_told() -> None:
    slow, picture = TALL._replace(rates={4.0: 1.0}), TALL._replace(frames=1, rates={1.0: 1.0})
    assert [unlike_rate([WIDE, slow, picture], rate) for rate in (4, 7, 11.99, 12.1)] == [None] * 4
    assert unlike_rate([WIDE, slow, picture], 30) == (
        "30 frames a second is no rate of the training, which had 4 to 12"
    )
    assert unlike_rate([WIDE], 6) == "6 frames a second is no rate of the training, which had 12"
    # A network that was trained on pictures alone, and a run whose dataset is gone.
    assert unlike_rate([picture], 1) is None
    assert unlike_rate([WIDE._replace(rates={})], 6) is None


def test_a_run_without_a_list_of_shapes_is_read_from_its_configuration(
    tmp_path: Path, world_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"root": str(world_dataset), "frames": 4, "height": 16, "width": 16, "stride": 2}
    (one,) = shapes_of_run(tmp_path, data)
    (rate,) = set(Manifest.load(world_dataset).column("fps").tolist())
    assert (one.shape, one.strides, one.rates) == ((4, 16, 16), (2,), {rate / 2: 1.0})
    assert shapes_of_run(tmp_path, {**data, "root": str(tmp_path / "gone")})[0].rates == {}
    # The address may be a stranger's: nothing is read from it.
    monkeypatch.setattr(Manifest, "load", lambda root: pytest.fail(f"read {root}"))
    buckets = [{"frames": 1, "height": 8, "width": 8, "strides": [1]}, {"frames": 9, "height": 8, "width": 8}]
    found = shapes_of_run(tmp_path, {**data, "root": "s3://somewhere/else", "buckets": buckets})
    assert [(one.shape, one.strides, one.share, one.rates) for one in found] == [
        ((1, 8, 8), (1,), 0.5, {}),
        ((9, 8, 8), (2,), 0.5, {}),
    ]


@pytest.mark.parametrize(("total", "frames"), [(1, 2), (3, 4), (4, 4), (7, 8), (8, 8), (20, 8)])
def test_a_short_clip_is_cut_from_the_least_window_that_the_patch_takes(total: int, frames: int) -> None:
    assert least_frames(total, 8, 2, Pixels()) == frames
