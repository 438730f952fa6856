from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.worlds.bouncing import DIRECTIONS, HELD_OUT, SIZES, SPEEDS, Bouncing
from videodiff.worlds.flight import CrampedError, bounce, fly, overlap
from videodiff.worlds.scene import PALETTE, SIDE

SEEDS = st.integers(0, 2**31)
CROWDED = {1: 1.0, 2: 1.0, 3: 1.0}


def asked(caption: str) -> list[tuple[str, str]]:
    return [(phrase.split()[2], phrase.split()[-1]) for phrase in caption.split(" and ")]


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, split=st.sampled_from(["train", "held_out", "all"]))
def test_discs_stay_between_the_walls(seed, split):
    scene = Bouncing(frames=24, balls=CROWDED, split=split).scene(seed)
    reach = scene.radius[:, None]
    assert (scene.position >= reach - 1e-9).all()
    assert (scene.position <= SIDE - reach + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_discs_never_overlap_and_keep_their_energy(seed):
    scene = Bouncing(frames=24, balls=CROWDED).scene(seed)
    assert not any(overlap(position, scene.radius - 1e-9) for position in scene.position)
    energy = (scene.velocity**2).sum(axis=-1) @ scene.radius**2
    np.testing.assert_allclose(energy, energy[0], rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_flight_backwards_returns_to_its_start(seed):
    scene = Bouncing(frames=12, balls=CROWDED).scene(seed)
    times = np.arange(12) / scene.fps
    back, _, _ = fly(scene.position[-1], -scene.velocity[-1], scene.radius, times)
    np.testing.assert_allclose(back[::-1], scene.position, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(angle=st.floats(0, 2 * np.pi), radii=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)), seed=SEEDS)
def test_a_contact_of_two_discs_keeps_momentum_and_energy_and_parts_them(angle, radii, seed):
    normal, mass = np.array([np.cos(angle), np.sin(angle)]), np.array(radii) ** 2
    position = np.stack([normal * sum(radii), np.zeros(2)])
    before = np.random.default_rng(seed).normal(size=(2, 2))
    after = before.copy()
    bounce(position, after, mass, (0, 1))
    np.testing.assert_allclose(mass @ after, mass @ before, atol=1e-9)
    assert (after**2).sum(axis=1) @ mass == pytest.approx((before**2).sum(axis=1) @ mass)
    assert (after[0] - after[1]) @ normal == pytest.approx(-(before[0] - before[1]) @ normal)


def test_without_walls_a_disc_flies_on():
    start, velocity = np.array([[9.0, 5.0]]), np.array([[2.0, 0.0]])
    position, _, first = fly(start, velocity, np.ones(1), np.array([0.0, 1.0]), walls=False)
    assert position[-1, 0, 0] == pytest.approx(11.0)
    assert first == np.inf


def test_a_wall_turns_a_disc_back_at_its_rim():
    start, velocity = np.array([[8.0, 5.0]]), np.array([[2.0, 0.0]])
    position, velocities, first = fly(start, velocity, np.ones(1), np.array([0.0, 1.0]))
    assert position[-1, 0, 0] == pytest.approx(8.0)
    assert velocities[-1, 0, 0] == pytest.approx(-2.0)
    assert first == pytest.approx(0.5)


@pytest.mark.parametrize("radius", [5.6, 5.0, 4.99999])
def test_a_disc_that_has_no_room_between_the_walls_does_not_bounce_for_ever(radius):
    with pytest.raises(CrampedError, match=r"found 10[12] contacts in .* expected discs with room to fly"):
        fly(np.array([[5.0, 5.0]]), np.array([[3.0, 0.0]]), np.array([radius]), np.array([0.0, 1.0]))


def test_discs_that_are_squeezed_between_walls_do_not_bounce_for_ever():
    start, velocity = np.array([[2.5, 5.0], [7.0, 5.0]]), np.array([[1.0, 0.0], [-1.0, 0.0]])
    with pytest.raises(CrampedError):
        fly(start, velocity, np.array([2.6, 3.0]), np.array([0.0, 1.0]))


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_training_never_shows_a_held_out_pair(seed):
    assert not set(asked(Bouncing(balls=CROWDED).scene(seed).caption)) & set(HELD_OUT)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_held_out_shows_a_held_out_pair_first_and_only_there(seed):
    first, *others = asked(Bouncing(balls=CROWDED, split="held_out").scene(seed).caption)
    assert first in HELD_OUT
    assert not set(others) & set(HELD_OUT)


def test_held_out_shows_every_pair():
    world = Bouncing(split="held_out")
    assert {asked(world.scene(seed).caption)[0] for seed in range(60)} == set(HELD_OUT)


def test_training_shows_every_other_pair():
    world = Bouncing()
    pairs = {asked(world.scene(seed).caption)[0] for seed in range(400)}
    assert pairs == {(colour, pace) for colour in PALETTE for pace in SPEEDS} - set(HELD_OUT)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_the_words_of_the_caption_hold_in_the_first_frames(seed):
    world = Bouncing(balls=CROWDED)
    scene = world.scene(seed)
    for disc, phrase in enumerate(scene.caption.split(" and ")):
        _, size, colour, _, _, way, pace = phrase.split()
        assert colour == scene.colour[disc]
        assert SIZES[size][0] <= scene.radius[disc] <= SIZES[size][1]
        assert SPEEDS[pace][0] <= np.linalg.norm(scene.velocity[0, disc]) <= SPEEDS[pace][1]
        assert np.array_equal(scene.velocity[0, disc], scene.velocity[world.free_frames - 1, disc])
        heading = np.array([np.cos(DIRECTIONS[way]), np.sin(DIRECTIONS[way])])
        assert scene.velocity[0, disc] @ heading > 0.7 * np.linalg.norm(scene.velocity[0, disc])
    assert set(scene.caption.split()) <= set(Bouncing.words())


def test_the_same_seed_gives_the_same_scene_and_another_one_another():
    world = Bouncing(balls=CROWDED)
    assert np.array_equal(world.scene(7).position, Bouncing(balls=CROWDED).scene(7).position)
    assert not np.array_equal(world.scene(7).position[:, 0], world.scene(8).position[:, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split: found 'test'"),
        ({"held_out": [["pink", "slowly"]]}, "held_out: found .*pink"),
        ({"held_out": [], "split": "held_out"}, "held_out: found no pair"),
        ({"held_out": [["red", "slowly"], ["red", "quickly"]]}, "every pace of red"),
        ({"balls": {7: 1.0}}, "balls: found"),
        ({"balls": {1: 0.0, 2: 0.0}}, "balls: found .* expected shares of 1 to 6 discs, one of them above 0"),
        ({"balls": {1: 1e308, 2: 1e308}}, "balls: found"),
    ],
)
def test_an_impossible_world_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Bouncing(**options)


def test_a_scene_without_room_is_an_error_and_not_an_endless_search(monkeypatch):
    monkeypatch.setattr("videodiff.worlds.bouncing.MOST_TRIES", 20)
    with pytest.raises(ValueError, match="found no place for 1 discs"):
        Bouncing(frames=200, free_frames=200).scene(0)
