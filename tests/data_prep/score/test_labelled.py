"""Floors for what is right of cuts, filters and scores on footage that set none of their limits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import pytest
import yaml

from data_prep.choose.filter import filtered
from data_prep.cut.clips import make_clips
from data_prep.cut.encode import EncodePolicy
from data_prep.cut.scenes import find_scenes, kept, small
from data_prep.cut.spans import MICROSECOND, Span, read_timeline
from data_prep.score import text as text_score
from data_prep.score.interlaced import COMBED
from data_prep.score.pixel_score import DEFAULT
from data_prep.score.text import text
from tests.material.labelled_footage import (
    FILES,
    FILMS,
    FPS,
    KEPT,
    REJECTED,
    Counts,
    compare,
    doubled,
    grainy,
    read_only,
    visited,
    wall,
    zoomed,
)
from tests.material.made_clips import write_video
from tests.material.scored_clips import panning, texture
from videodiff.data.video.encode import encode

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "clips"
RULES = yaml.safe_load((Path(__file__).parents[3] / "conf/prep/default.yaml").read_text())["filter"]
LIMITS = {name: sides for name, sides in RULES.items() if None not in sides.values()}
# Of the real files those that take a second or less.
SHORT = ("intel_bottle-detection.mp4", "intel_asl_book.mkv", "intel_asl_walk.mkv", "derived_hardcuts_5src.mp4")


def counts(path: Path, changes: list[tuple[float, float]]) -> Counts:
    return compare(find_scenes(path), changes, read_timeline(path).end / MICROSECOND)


def scores_of(path: Path, seconds: float, scores=DEFAULT) -> dict[str, float]:
    ((_, clip),) = make_clips(path, [Span(0, seconds)], EncodePolicy(preset="ultrafast"), scores=scores)
    return clip.scores


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, Counts]:
    path, found = tmp_path_factory.mktemp("films") / "film.mp4", {}
    for name, film in FILMS.items():
        path.write_bytes(encode(film.frames(), FPS, preset="ultrafast"))
        found[name] = counts(path, [(first / FPS, last / FPS) for first, last in film.changes])
    return found


def test_changes_of_shot_are_found_and_nothing_else_is_one(films):
    total = sum(films.values(), Counts())
    assert total.recall >= 0.9, films
    assert total.precision >= 0.9, films


@pytest.mark.parametrize("name", [name for name, film in FILMS.items() if not film.changes])
def test_what_happens_within_a_shot_is_no_change_of_it(films, name):
    assert films[name].wrong == 0


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
@pytest.mark.parametrize("name", SHORT)
def test_the_shots_of_real_footage_are_found(name):
    assert counts(read_only([CLIPS])[name], FILES[name]) == (len(FILES[name]), 0, 0)


@pytest.mark.parametrize("name", [*REJECTED, *KEPT])
def test_the_default_limits_reject_what_they_must_and_nothing_else(name, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(encode((REJECTED | KEPT)[name](20), 8.0, preset="ultrafast"))
    scores = scores_of(tmp_path / "clip.mp4", 3)
    assert (filtered(scores, LIMITS) is not None) == (name in REJECTED), scores


def test_pictures_keep_what_is_in_both_whatever_the_light():
    video = visited(35)
    before, during = (small(np.ascontiguousarray(video[number])) for number in (0, 50))
    other = small(np.ascontiguousarray(visited(35, 5)[0]))
    assert kept(before, before) == 1
    assert kept(before, (before * 0.6).astype(np.uint8)) == 1
    assert kept(before, during) > 0.4
    assert kept(before, other) < 0.1
    assert kept(before, np.roll(before, 4, axis=1)) > 0.7
    assert kept(before, np.zeros_like(before)) == 0


class Copy(NamedTuple):
    """How others encode the same film: options, codec, pixels, size, and how often each frame is repeated."""

    options: dict[str, str]
    codec: str = "libx264"
    pixels: str = "yuv420p"
    size: float = 1.0
    times: int = 1


COPIES = {
    "long groups": Copy({"crf": "18", "g": "250", "bf": "3"}),
    "few bits": Copy({"crf": "28", "g": "12", "bf": "2"}),
    "in haste": Copy({"crf": "23", "g": "12", "bf": "0", "preset": "ultrafast"}),
    "ten bits": Copy({"crf": "22", "g": "48"}, pixels="yuv420p10le"),
    "each frame twice": Copy({"crf": "23"}, times=2),
    "vp9": Copy({"crf": "33", "b": "0", "deadline": "realtime", "cpu-used": "8"}, "libvpx-vp9"),
    "a quarter smaller": Copy({"crf": "20", "preset": "veryfast"}, size=0.75),
}
REAL_COPIES = {
    "short groups": COPIES["in haste"],
    "few bits in long groups": Copy({"crf": "28", "g": "250"}),
    "hevc": Copy({"crf": "24", "preset": "ultrafast", "x265-params": "log-level=none:pools=1"}, "libx265"),
    "a tenth smaller": Copy({"crf": "20", "preset": "veryfast"}, size=0.9),
}


def turning() -> np.ndarray:
    """Return a pan that zooms, before which somebody comes and goes."""
    video = doubled(zoomed())
    left = np.arange(len(video)) * 5
    for frame, place in zip(video, left, strict=True):
        frame[60:, place : place + 60] = texture(156, 60, 3)[:, : frame.shape[1] - place]
    return np.stack([frame[:, number : number + 300] for number, frame in enumerate(video)])


def dithered(video: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-1, 2, video.shape)
    return (video.astype(np.int16) + noise).clip(0, 255).astype(np.uint8)


SEEN = {
    "by hand, grain": lambda: grainy(panning(75, speed=2, shake=4, height=192, width=342, seed=30), 4),
    "a visitor": lambda: grainy(doubled(visited(35, 8, 75)), 3),
    # Of this grain three copies lead the flow across half the picture within half a second, and four do not.
    "a visitor in other grain": lambda: dithered(SEEN["a visitor"](), 1),
    "a pan that zooms": turning,
}
# Real files that move in many ways, and from which second on 3 s are taken.
REAL = {
    "cosmoscurate_test_clip_10s.mp4": 0,
    "derived_hardcuts_5src.mp4": 8,
    "derived_letterbox_text_bbb.mp4": 0,
    "intel_asl_book.mkv": 0,
    "opencv_box.mp4": 6,
}
# What no limit could tell from 0: in these units of each score. Of pan and tilt it is half of what is called still, of
# zoom as much again, as that moves the edge of the frame, half a height away. Of combs it is a fifth of what is called
# interlaced: in grain that moves, a few of a thousand blocks look combed, and which ones differs by processor.
NOTHING = {"motion": 0.0005, "moving": 0.01, "jitter": 0.01, "pan": 0.005, "tilt": 0.005, "zoom": 0.01, "clipped": 0.01}
NOTHING["interlaced"] = COMBED / 5
ABOUT_THE_FILE = ("width", "height", "short_side", "aspect", "frames", "fps", "duration")


@pytest.mark.parametrize("name", SEEN)
def test_scores_do_not_depend_on_how_a_clip_was_encoded(name, tmp_path):
    check_copies(SEEN[name](), COPIES, tmp_path)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
@pytest.mark.parametrize("name", REAL)
def test_scores_of_real_footage_do_not_depend_on_how_it_was_encoded(name, tmp_path):
    with av.open(str(CLIPS / name)) as container:
        rate, frames = float(container.streams.video[0].average_rate), []
        first = round(REAL[name] * rate)
        for number, frame in enumerate(container.decode(video=0)):
            if first <= number < first + 3 * rate:
                width = round(256 * frame.width / frame.height / 2) * 2
                frames.append(frame.reformat(width, 256, "rgb24", interpolation="AREA").to_ndarray())
            elif number >= first + 3 * rate:
                break
    check_copies(np.stack(frames), REAL_COPIES, tmp_path, ("motion", "overlay"))


def check_copies(video: np.ndarray, copies: dict[str, Copy], folder: Path, scores=DEFAULT) -> None:
    """Hold the scores of all copies of a film against each other."""
    found = {}
    for name, copy in copies.items():
        path = folder / f"{name}.mkv"
        path.write_bytes(copied(video, copy))
        found[name] = scores_of(path, read_timeline(path).end / MICROSECOND, scores)
    for score in sorted(next(iter(found.values())).keys() - set(ABOUT_THE_FILE)):
        # Sharpness is of the size that a clip has.
        same = [name for name, copy in copies.items() if score != "sharpness" or copy.size == 1]
        values = [found[name][score] for name in same]
        allowed = 0.15 * max(map(abs, values)) + NOTHING.get(score, 0.002)
        assert max(values) - min(values) <= allowed, (score, dict(zip(same, values, strict=True)))


def copied(video: np.ndarray, copy: Copy) -> bytes:
    """Return a file that shows each frame for a 25th of a second, by one frame or by several."""
    if copy.size != 1:
        width, height = (round(side * copy.size / 2) * 2 for side in (video.shape[2], video.shape[1]))
        video = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in video])
    if copy.times == 1:
        return write_video(video, copy.codec, copy.pixels, "matroska", **copy.options)
    return encode(np.repeat(video, copy.times, axis=0), 25.0 * copy.times, int(copy.options["crf"]), preset="ultrafast")


def test_a_hand_before_a_wall_is_no_text():
    assert text(wall(3), 2.0)["text"] < 0.05


def test_a_region_that_covers_most_of_a_frame_is_no_text(monkeypatch):
    monkeypatch.setattr(text_score, "probability", lambda image: np.full(image.shape[:2], 0.95, np.float32))
    assert text(wall(3)[:1], 2.0)["text"] == 0


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
def test_a_plain_tablecloth_is_no_text():
    with av.open(str(CLIPS / "opencv_box.mp4")) as container:
        frame = next(frame for number, frame in enumerate(container.decode(video=0)) if number == 108)
        image = frame.reformat(342, 256, "rgb24", interpolation="AREA").to_ndarray()
    assert text(image[None], 2.0)["text"] < 0.05
