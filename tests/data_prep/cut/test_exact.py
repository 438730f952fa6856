"""Clips against the full decode of the ffmpeg program: the same frames, pixel by pixel, from first to last."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.cut.spans import MICROSECOND, Shown, Span, cut, meant, read_timeline
from tests.material.numbered_clips import KINDS, make
from videodiff.data.video.info import best_stream

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "clips"
RUNS = int(os.environ.get("PREP_RUNS", "50"))
FFMPEG = shutil.which("ffmpeg")
# Videos whose frames bear the times of their decoding, which ffmpeg takes for those of showing; one without keyframes;
# one that cannot be opened.
ODD = {"stamped by decoding", "avi", "intra refresh", "opencv_box.mp4", "derived_truncated_bbb.mp4"}
EXAMPLES = sorted(path for path in CLIPS.glob("*.m*") if path.name not in ODD)


def full_decode(path: Path) -> list[tuple[int, str]]:
    """Return time in microseconds and md5 of every frame that ffmpeg shows."""
    with av.open(str(path)) as container:
        index = best_stream(container).index
    command = [FFMPEG, "-v", "error", "-noautorotate", "-i", path, "-map", f"0:{index}", "-fps_mode", "passthrough"]
    command += ["-enc_time_base", "-1", "-f", "framehash", "-hash", "md5", "-"]
    text = subprocess.run(command, check=True, capture_output=True, text=True)
    header, rows = [line for line in text.stdout.splitlines() if line[0] == "#"], text.stdout.splitlines()
    ((top, bottom),) = [line.split(": ")[1].split("/") for line in header if line.startswith("#tb 0")]
    cells = [line.split(",") for line in rows if line[0] != "#"]
    return [(round(int(row[2]) * MICROSECOND * int(top) / int(bottom)), row[5].strip()) for row in cells]


def planes(frame: av.VideoFrame) -> str:
    """Return the md5 of a frame as ffmpeg computes it: the planes without padding."""
    return hashlib.md5(np.ascontiguousarray(frame.to_ndarray()).tobytes()).hexdigest()


def check(path: Path, seed: int, count: int) -> None:
    """Compare random spans in milliseconds, and three that begin and end with a frame."""
    shown, dice = full_decode(path), np.random.default_rng(seed)
    end = read_timeline(path).end / MICROSECOND
    edges = np.sort(np.round(dice.uniform(0, end, (count, 2)), 3), axis=1).tolist()
    edges += [
        (shown[a][0] / 1e6, shown[b][0] / 1e6) for a, b in (np.sort(dice.choice(len(shown), 2)) for _ in range(3))
    ]
    spans = [Span(a, b) for a, b in edges if any(meant(a) <= time < meant(b) for time, _ in shown)]
    found: dict[int, list[tuple[int, str]]] = {number: [] for number in range(len(spans))}
    for number, item in cut(path, spans):
        assert item is None or isinstance(item, Shown), (path.name, spans[number], item)
        if item is not None:
            found[number].append((item.time, planes(item.frame)))
    for number, span in enumerate(spans):
        wanted = [(time, frame) for time, frame in shown if meant(span.start) <= time < meant(span.end)]
        before = [(time, frame) for time, frame in shown if time < meant(span.start)][-1:]
        if before and found[number][0][0] < meant(span.start):
            # The frame that is shown when the span begins, as the next one comes only after a pause.
            assert wanted[0][0] - before[0][0] > 1.5 * np.median(np.diff([time for time, _ in shown]))
            wanted = before + wanted
        assert [frame for _, frame in found[number]] == [frame for _, frame in wanted], (path.name, span)
        assert np.abs(np.array(found[number])[:, 0].astype(int) - [time for time, _ in wanted]).max() <= 1000


@pytest.mark.skipif(FFMPEG is None, reason="needs the ffmpeg program")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ODD])
def test_made_videos_are_cut_as_ffmpeg_shows_them(kind, tmp_path):
    path = tmp_path / "video"
    path.write_bytes(make(kind, 1)[0])
    check(path, 0, RUNS // 5)


@pytest.mark.skipif(FFMPEG is None or not EXAMPLES, reason="needs the ffmpeg program and the example clips")
@pytest.mark.parametrize(
    "path", EXAMPLES if RUNS >= 500 else EXAMPLES[1:8:3] + EXAMPLES[-4:], ids=lambda path: path.name
)
def test_the_example_clips_are_cut_as_ffmpeg_shows_them(path):
    check(path, 0, 6)
