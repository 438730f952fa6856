from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from videodiff.metrics.worlds.parsing import beside, seen_colours, track, track_of, track_phyworld
from videodiff.worlds.bouncing import LAW, Bouncing
from videodiff.worlds.scene import PALETTE, SIDE, Scene, render

CROWD = Bouncing(balls={1: 1, 2: 1, 3: 1})


def still(*discs: tuple[str, float, float, float], frames: int = 1) -> Scene:
    colour, x, y, radius = zip(*discs, strict=True)
    position = np.tile(np.stack([x, y], -1), (frames, 1, 1))
    return Scene(position, np.zeros_like(position), np.array(radius), colour, 10.0, "", LAW)


def gap(scene: Scene) -> float:
    """Return the smallest distance between the edges of two discs, infinite for a single one."""
    pairs = [(i, j) for i in range(len(scene.radius)) for j in range(i)]
    apart = [np.linalg.norm(scene.position[:, i] - scene.position[:, j], axis=-1).min() for i, j in pairs]
    touching = [scene.radius[i] + scene.radius[j] for i, j in pairs]
    return min((a - b for a, b in zip(apart, touching, strict=True)), default=np.inf)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([32, 64]))
def test_what_was_drawn_is_read_back(seed, size):
    scene = CROWD.scene(seed)
    # A pixel that two balls share is given to one of them.
    assume(gap(scene) > 2 * SIDE / size)
    seen = track(render(scene, size), scene.colour)
    assert seen.visible.all()
    assert seen.whole.all()
    np.testing.assert_allclose(seen.position, scene.position, atol=0.6 / size)
    np.testing.assert_allclose(seen.radius(), np.broadcast_to(scene.radius, seen.area.shape), atol=1.0 / size)


def test_a_mirrored_frame_gives_the_mirrored_position():
    frames = render(still(("cyan", 3.3, 7.1, 1.4)), 33)
    place = track(frames, ["cyan"]).position[0, 0]
    mirrored = track(frames[:, ::-1, ::-1], ["cyan"]).position[0, 0]
    np.testing.assert_allclose(place + mirrored, [SIDE, SIDE])


@pytest.mark.parametrize("name", list(PALETTE))
def test_every_colour_is_seen_as_itself_alone(name):
    assert seen_colours(render(still((name, 5, 5, 1.0)), 32)) == (name,)


def test_faint_noise_neither_adds_balls_nor_moves_one():
    scene = CROWD.scene(1)
    frames = render(scene, 32)
    noisy = np.clip(frames + np.random.default_rng(0).normal(0, 8, frames.shape), 0, 255).astype(np.uint8)
    seen = track(noisy)
    assert (seen.count() == len(scene.colour)).all()
    np.testing.assert_allclose(seen.of(scene.colour).position, scene.position, atol=0.05)


def test_colour_at_half_resolution_as_in_video_moves_no_ball():
    scene = CROWD.scene(2)
    frames = render(scene, 32).astype(np.float64)
    t, h, w, _ = frames.shape
    luma = frames @ np.array([0.299, 0.587, 0.114])
    chroma = (frames - luma[..., None]).reshape(t, h // 2, 2, w // 2, 2, 3).mean(axis=(2, 4))
    coarse = luma[..., None] + chroma.repeat(2, axis=1).repeat(2, axis=2)
    seen = track(np.clip(np.rint(coarse), 0, 255).astype(np.uint8))
    assert (seen.count() == len(scene.colour)).all()
    np.testing.assert_allclose(seen.of(scene.colour).position, scene.position, atol=0.04)


@pytest.mark.parametrize("grey", [0, 128])
def test_a_grey_ball_has_no_colour_of_the_palette(grey):
    frames = render(still(("red", 5, 5, 1.5)), 32)
    frames[(frames != 255).any(axis=-1)] = grey
    assert seen_colours(frames) == ()


def test_an_empty_frame_has_no_ball_and_no_position():
    seen = track(np.full((2, 16, 16, 3), 255, dtype=np.uint8), ["red"])
    assert not seen.visible.any()
    assert np.isnan(seen.position).all()
    assert (seen.area == 0).all()


def test_a_ball_faded_to_a_quarter_is_not_visible():
    frames = render(still(("red", 5, 5, 1.5)), 32)
    faded = (255 - (255 - frames.astype(int)) // 4).astype(np.uint8)
    assert not track(faded, ["red"]).visible.any()


def test_two_balls_of_one_colour_are_not_whole_and_count_twice():
    seen = track(render(still(("red", 3, 5, 1.0), ("red", 7, 5, 1.0)), 32))
    assert not seen.of(["red"]).whole.any()
    assert seen.count().tolist() == [2]


def test_two_touching_balls_of_one_colour_are_not_whole():
    assert not track(render(still(("red", 4, 5, 1.0), ("red", 6, 5, 1.0)), 64), ["red"]).whole.any()


def test_a_colour_shown_in_a_minority_of_the_frames_is_not_seen():
    frames = render(still(("red", 3, 5, 1.0), ("blue", 7, 5, 1.0), frames=5), 32)
    frames[:3, :, 16:] = 255
    assert seen_colours(frames) == ("red",)


def test_columns_follow_the_colours_asked_for():
    frames = render(still(("red", 3, 5, 1.0), ("blue", 7, 5, 1.0)), 32)
    assert track(frames, ["blue", "red"]).position[0, :, 0] == pytest.approx([7, 3], abs=0.02)
    with pytest.raises(ValueError, match="expected green among them"):
        track(frames, ["red"]).of(["green"])


def test_an_exact_scene_has_its_own_radius():
    scene = CROWD.scene(0)
    np.testing.assert_allclose(track_of(scene).radius(), np.broadcast_to(scene.radius, scene.position.shape[:2]))


def test_beside_takes_the_eight_neighbours():
    solid = np.zeros((1, 5, 5), dtype=bool)
    solid[0, 2, 2] = True
    expected = np.zeros((5, 5), dtype=bool)
    expected[1:4, 1:4] = True
    assert np.array_equal(beside(solid)[0], expected)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), dtype=np.float32),
        np.zeros((2, 8, 9, 3), dtype=np.uint8),
        np.zeros((8, 8, 3), dtype=np.uint8),
    ],
)
def test_other_arrays_than_square_frames_are_refused(frames):
    with pytest.raises(ValueError, match=r"frames: found .* expected uint8"):
        track(frames)


def test_phyworlds_parser_reads_half_a_pixel_to_the_lower_left():
    place, radius = track_phyworld(render(still(("red", 5, 7, 1.5)), 200))
    half = 0.5 / 200 * SIDE
    assert place[0, 0] == pytest.approx([5 - half, 7 - half], abs=1e-6)
    # A soft edge is cut where it is half covered.
    assert radius[0, 0] == pytest.approx(1.5 * np.sqrt(1 - 0.03 / 2), abs=0.01)


def test_phyworlds_parser_puts_one_missing_ball_at_the_right_edge_with_its_last_height_and_radius():
    frames = render(still(("red", 5, 7, 1.5), frames=2), 64)
    frames[1] = 255
    place, radius = track_phyworld(frames)
    assert place[1, 0].tolist() == [SIDE, place[0, 0, 1]]
    assert radius[1, 0] == radius[0, 0]


def test_phyworlds_parser_puts_two_missing_balls_at_their_edges_and_at_the_first_ones_height():
    frames = render(still(("red", 3, 7, 1.0), ("blue", 8, 4, 1.0), frames=2), 64)
    frames[1] = 255
    place, _ = track_phyworld(frames, ["red", "blue"])
    assert place[1].tolist() == [[0.0, place[0, 0, 1]], [SIDE, place[0, 0, 1]]]


def test_phyworlds_parser_knows_no_height_before_it_saw_a_ball():
    place, radius = track_phyworld(np.full((1, 8, 8, 3), 255, dtype=np.uint8))
    assert place[0, 0, 0] == SIDE
    assert np.isnan([place[0, 0, 1], radius[0, 0]]).all()


def test_phyworlds_parser_knows_red_and_blue_only():
    with pytest.raises(ValueError, match="colours: found"):
        track_phyworld(np.zeros((1, 8, 8, 3), dtype=np.uint8), ["green"])
