"""Measure what the scores add to cutting and encoding, in seconds of one core, over the same clips of the same sources.

python bench/prep/operations.py FOLDER_OF_VIDEO [PRESET]
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import av

from data_prep.cut.clips import ReadyClip, make_clips
from data_prep.cut.encode import EncodePolicy
from data_prep.cut.spans import MICROSECOND, Shown, Span, cut, read_timeline
from data_prep.score.duplicate import exact_hash, video_hash
from data_prep.score.pixel_score import DEFAULT, pixel_score
from videodiff.data.video.decode import DecodeError

CLIP = 5.0
ROUNDS = 3


def clips_in(source: Path) -> list[Span]:
    """Return spans of a few seconds that cover a source, none where it cannot be read."""
    try:
        end = read_timeline(source).end / MICROSECOND
    except DecodeError:
        return []
    return [Span(at * CLIP, min((at + 1) * CLIP, end)) for at in range(int(end / CLIP + 0.9))]


def seconds(work, *arguments, **how) -> float:
    """Return the least processor time of some rounds."""
    spent = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work(*arguments, **how)
        spent.append(time.process_time() - start)
    return min(spent)


def decode_only(source: Path, spans: list[Span]) -> int:
    return sum(isinstance(item, Shown) for _, item in cut(source, spans))


def prepare(source: Path, spans: list[Span], policy: EncodePolicy, scored: bool) -> list[ReadyClip]:
    """Make the clips of a source, with all that is computed from their frames or with nothing."""
    made = [clip for _, clip in make_clips(source, spans, policy, crop=scored, scored=scored)]
    if scored:
        _ = [exact_hash(clip.video) for clip in made]
    return made


def main(folder: str, preset: str = "veryfast") -> None:
    """Print a line a source, then the sums and the time of each score."""
    av.logging.set_level(av.logging.PANIC)
    policy = EncodePolicy(preset=preset)
    sources = {path: spans for path in sorted(Path(folder).iterdir()) if (spans := clips_in(path))}
    # Loads the text detector.
    samples = [clip.sampled for path, spans in sources.items() for clip in prepare(path, spans[:1], policy, True)]
    totals = [0.0, 0.0, 0.0]
    for path, spans in sources.items():
        spent = (
            seconds(decode_only, path, spans),
            seconds(prepare, path, spans, policy, False),
            seconds(prepare, path, spans, policy, True),
        )
        totals = [total + one for total, one in zip(totals, spent, strict=True)]
        print(f"{path.name:42} {len(spans):3} clips  " + "  ".join(f"{one:6.2f}" for one in spent))
    count = sum(map(len, sources.values()))
    decoding, plain, scored = totals
    print(f"decode {decoding:.2f} s, with encode ({preset}) {plain:.2f} s, with scores {scored:.2f} s")
    print(f"{count / plain:.2f} clips a second of one core; scores add {scored / plain - 1:.0%}: {count / scored:.2f}")
    measures = {name: pixel_score(name) for name in DEFAULT} | {"hash": lambda frames, fps: video_hash(frames)}
    for name, score in measures.items():
        one = seconds(lambda score=score: [score(sampled.frames, sampled.fps) for sampled in samples]) / len(samples)
        print(f"  {name:12} {1000 * one:6.1f} ms a clip")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
