"""Utilisation from the geometry of batches: closed forms, and a clip in pixels is the clip in its latents."""

from __future__ import annotations

import pytest

from videodiff.planning.flops import forward, network_of
from videodiff.planning.work import Shapes, Window, Work, utilisation, work_of

NETWORK = network_of(64, ("space", "time"), 4, patch=16, words=7, text_width=32)
# A causal codec: the first frame alone, then four at a time; 8 x 8 pixels to one place.
SHAPES = Shapes(lambda t: 1 + (t - 1) // 4, (4, 8, 8), (1, 2, 2))


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (17, 5)])
def test_a_clip_in_pixels_takes_what_its_latents_take(frames: int, latent: int) -> None:
    pixels = work_of((frames, 64, 96), True, SHAPES, NETWORK)
    assert pixels == work_of((latent, 8, 12), False, SHAPES, NETWORK)
    assert pixels.tokens == latent * 4 * 6
    assert pixels.recomputed == 0


def test_a_full_recompute_repeats_the_blocks() -> None:
    work = work_of((5, 8, 12), False, SHAPES, NETWORK, "full")
    assert work.recomputed == forward(5, 24, NETWORK).blocks


def test_shares_are_of_all_flops_and_utilisation_is_of_the_network_alone() -> None:
    window = Window().plus(4, Work(10, 600, 200), encoders=800, words=20)
    window = window.plus(4, Work(20, 600, 200), encoders=800, words=20)._replace(padding=10.0)
    found = utilisation(window, seconds=2.0, waited=0.5, peak=6000.0)
    assert found == {
        "train/clips_per_s": 4.0,
        "train/tokens_per_s": 60.0,
        # 4800 of the network, 1600 of recompute and 1600 of encoders.
        "train/flops_encoders": 0.2,
        "train/flops_recompute": 0.2,
        "train/text_padding": 0.25,
        "train/data_wait": 0.25,
        "train/mfu": 0.4,
    }


def test_without_a_known_peak_there_is_no_utilisation() -> None:
    assert "train/mfu" not in utilisation(Window().plus(1, Work(1, 1, 0), 0, 0), 1.0, 0.0, None)
