from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cut.scenes import Transitions, between, find_scenes, fit_durations, small
from data_prep.cut.spans import Span
from tests.material.made_clips import write_video
from tests.material.scored_clips import panning

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "clips"


def shot(seed: int, frames: int = 40) -> np.ndarray:
    return panning(frames, 128, 224, speed=1.0, seed=seed)


def cross_fade(before: np.ndarray, after: np.ndarray, frames: int) -> np.ndarray:
    """Join two shots, the last `frames` of one fading into the first of the other."""
    weight = (np.arange(1, frames + 1) / (frames + 1))[:, None, None, None]
    mixed = (before[-frames:] * (1 - weight) + after[:frames] * weight).astype(np.uint8)
    return np.concatenate([before[:-frames], mixed, after[frames:]])


def frames_of(spans: list[Span]) -> list[tuple[int, int]]:
    """Return the numbers of the first frame and of the one after the last, of 25 a second."""
    return [(round(span.start * 25), round(span.end * 25)) for span in spans]


@pytest.fixture
def scenes(tmp_path):
    def find(video: np.ndarray, times=None, **how) -> list[tuple[int, int]]:
        path = tmp_path / "film.mp4"
        path.write_bytes(write_video(video, bf="3", times=times))
        return frames_of(find_scenes(path, **how))

    return find


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_hard_cuts_are_found_to_the_frame(scenes, detector):
    film = np.concatenate([shot(0), shot(1, 30), shot(2, 50)])
    assert scenes(film, detector=detector) == [(0, 40), (40, 70), (70, 120)]


def test_one_shot_is_one_scene_and_a_fast_pan_is_no_cut(scenes):
    assert scenes(shot(0, 60)) == [(0, 60)]
    assert scenes(panning(60, 128, 224, speed=9.0)) == [(0, 60)]


def test_cuts_follow_the_timestamps_where_frames_come_unevenly(scenes):
    film = np.concatenate([shot(0), shot(1)])
    times = [number + number // 4 for number in range(80)]
    first, (start, end) = scenes(film, times=times)
    assert (first, start) == ((0, times[40]), times[40])
    # The last frame stays for one frame or two: the writer of the file has to guess.
    assert times[-1] + 1 <= end <= times[-1] + 2


@pytest.mark.parametrize("length", [12, 15, 25])
def test_a_cross_fade_is_in_no_scene_and_costs_few_frames(scenes, length):
    (first, second) = scenes(cross_fade(shot(0, 70), shot(1, 80), length))
    assert first[0] == 0
    assert 70 - length - 3 <= first[1] <= 70 - length + 1
    assert 69 <= second[0] <= 73
    assert second[1] == 150 - length


def test_a_fade_to_black_and_back_is_in_no_scene(scenes):
    black = np.zeros((50, 128, 224, 3), np.uint8)
    film = cross_fade(cross_fade(shot(0, 70), black, 20), shot(1, 70), 20)
    found = scenes(film)
    assert found[0][0] == 0
    assert 47 <= found[0][1] <= 51
    assert 99 <= found[-1][0] <= 103
    assert found[-1][1] == 150


def test_a_short_scene_between_cuts_is_merged_within_the_shortest_allowed(scenes):
    film = np.concatenate([shot(0), shot(1, 8), shot(2)])
    assert (40, 48) in scenes(film, min_scene=0.2)
    assert (40, 48) not in scenes(film)
    assert (40, 48) not in scenes(film, min_scene=1)


def test_what_lies_at_the_edge_of_the_frames_held_is_judged_with_those_that_follow():
    """At 10 frames a second 300 are held, and the last 40 wait: a flash in frame 299 is over in frame 300."""
    film = shot(0, 340)
    film[299], film[320:] = shot(1, 1)[0], shot(2, 20)
    transitions = Transitions(10.0, 0.6)
    for number, image in enumerate(film):
        transitions.add(number, small(image), [number] if number in (299, 300, 320) else [])
    transitions.settle(last=True)
    assert (transitions.cuts, transitions.dissolves) == ([320], [])


def test_an_unknown_detector_is_an_error(scenes):
    with pytest.raises(ValueError, match=r"cut\.detector: found 'magic', expected adaptive or content"):
        scenes(shot(0, 10), detector="magic")


spans = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 3000)), max_size=8).map(
    lambda pairs: [Span(start / 10, (start + length) / 10) for start, length in pairs]
)


@settings(deadline=None)
@given(spans, st.integers(0, 30), st.integers(1, 300))
def test_fitted_spans_are_no_longer_and_no_shorter_and_cover_what_was_long_enough(given_spans, minimum, length):
    minimum, maximum = minimum / 10, (minimum + length) / 10
    fitted = fit_durations(given_spans, minimum, maximum)
    assert all(minimum - 1e-6 <= span.end - span.start <= maximum + 1e-6 for span in fitted)
    if maximum >= 2 * minimum:
        lengths = [round(span.end - span.start, 6) for span in given_spans]
        whole = sum(length for length in lengths if length >= minimum)
        assert sum(span.end - span.start for span in fitted) == pytest.approx(whole)


def test_a_long_shot_is_split_into_equal_parts():
    assert fit_durations([Span(1, 26), Span(30, 31)], 2, 10) == [
        Span(1, 1 + 25 / 3),
        Span(1 + 25 / 3, 1 + 50 / 3),
        Span(1 + 50 / 3, 26),
    ]


@pytest.mark.parametrize(("minimum", "maximum"), [(3, 2), (-1, 2), (0, 0)])
def test_durations_that_cannot_be_are_an_error(minimum, maximum):
    with pytest.raises(ValueError, match="cut: found durations"):
        fit_durations([], minimum, maximum)


def test_a_cut_inside_a_dissolve_is_none():
    second = 1_000_000
    found = between([second, 5 * second], [(4 * second, 6 * second)], 0, 9 * second)
    assert found == [Span(0, 1), Span(1, 4), Span(6, 9)]


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
def test_the_cuts_of_real_footage_are_found_to_the_frame():
    found = find_scenes(CLIPS / "derived_hardcuts_5src.mp4")
    edges = [round(span.start * 24) for span in found]
    # The first source fades into another picture before it ends.
    assert {0, 96, 192, 312, 432} <= set(edges)
    assert len(edges) <= 6
