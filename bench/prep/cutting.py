"""Measure cutting and encoding beside plain ffmpeg that decodes each source once for all its clips.

python bench/prep/cutting.py [rounds]

Both make the same clips of the same sources: same spans, size, scaler, x264 preset and options, one thread. Seconds
are those of the processor, of ours without the start of Python, which a worker pays once for all its videos, of ffmpeg
with the start of a process for each source. The two take turns, and the ratio is that of the median round. Where
video2dataset can be imported, the two parts of its exact path take a turn too, at x264's own preset, which it cannot
change; only the clips that it delivers count. Writes bench/out/prep.json.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import av
import cv2
import numpy as np

from data_prep.cut.clips import ReadyClip, make_clips
from data_prep.cut.encode import EncodePolicy
from data_prep.cut.spans import MICROSECOND, Span, read_timeline
from data_prep.score.duplicate import exact_hash
from videodiff.data.video.encode import encode
from videodiff.data.video.geometry import Display, even_size
from videodiff.data.video.info import DecodeError, best_stream

HERE = Path(__file__).resolve().parents[1]
EXAMPLES = HERE.parents[1] / "shared" / "clips"
SOURCES, CLIPS, SHORTEST, LONGEST = 25, 8, 1.5, 5.0
PRESETS = ("medium", "veryfast")
FFMPEG = shutil.which("ffmpeg") is not None
VIDEO2DATASET = FFMPEG and importlib.util.find_spec("video2dataset") is not None


def made(number: int) -> bytes:
    """Return twenty seconds of a camera over a picture with things of every size, with the noise of a sensor."""
    dice, height, width = np.random.default_rng(number), (360, 480, 720)[number % 3], (640, 854, 1280)[number % 3]
    picture = np.zeros((height * 2, width * 3, 3), np.float32)
    for size in (4, 16, 64, 256):
        grain = dice.normal(0, 25, (size, size * 16 // 9, 3)).astype(np.float32)
        picture += cv2.resize(grain, (width * 3, height * 2), interpolation=cv2.INTER_CUBIC)
    noise = dice.normal(0, 3, (8, height, width, 3)).astype(np.float32)
    frames = (
        (picture[t // 2 : t // 2 + height, 2 * t : 2 * t + width] + noise[t % 8] + 120).clip(0, 255).astype(np.uint8)
        for t in range(480)
    )
    return encode(frames, 24.0, crf=23, preset="medium")


def collect(folder: Path) -> list[Path]:
    """Return the sources: the example clips that can be read, where they are, and made ones beside them."""
    found = []
    for path in sorted(EXAMPLES.glob("*.m*")):
        try:
            found += [path] if read_timeline(path).end >= SHORTEST * MICROSECOND else []
        except DecodeError:
            continue
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(SOURCES - len(found)):
        path = folder / f"twenty{number}.mp4"
        if not path.is_file():
            path.write_bytes(made(number))
        found.append(path)
    return found


def spans_in(source: Path, number: int) -> list[Span]:
    """Return some spans of a source, one after the other with gaps, in whole milliseconds."""
    dice, end = np.random.default_rng(number), read_timeline(source).end / MICROSECOND
    spans, at = [], 0.0
    while len(spans) < CLIPS and end - at >= SHORTEST:
        start = round(at + dice.uniform(0, min(0.5, end - at - SHORTEST)), 3)
        stop = round(min(end, start + dice.uniform(SHORTEST, LONGEST)), 3)
        spans.append(Span(start, stop))
        at = stop
    return spans


def ours(job: str) -> None:
    """Make the clips of a job, in a process of its own, and print what it took."""
    task = json.loads(Path(job).read_text())
    policy, scored, out = EncodePolicy(preset=task["preset"]), task["scored"], Path(task["out"])
    startup = time.process_time()
    if scored:
        # Loads the text detector, as a worker does once.
        path, spans = task["work"][0]
        list(make_clips(path, [Span(*spans[0])], policy))
    begun, times = time.process_time(), {}
    for number, (path, spans) in enumerate(task["work"]):
        for place, clip in make_clips(path, [Span(*span) for span in spans], policy, crop=scored, scored=scored):
            assert isinstance(clip, ReadyClip), (path, spans[place], clip)
            (out / f"{number}.{place}.mp4").write_bytes(clip.video)
            times[f"{number}.{place}"] = clip.times
            if scored:
                exact_hash(clip.video)
    spent = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": spent, "startup": startup, "peak_gib": peak, "times": times}))


def run_apart(who: str, work: list, out: Path, **options: object) -> dict:
    """Return what `ours` or `theirs` prints of all sources."""
    job = out / "job.json"
    job.write_text(json.dumps({"work": work, "out": str(out), **options}))
    done = subprocess.run([sys.executable, __file__, who, job], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def ffmpeg_command(source: str, spans: list[Span], preset: str, out: Path, number: int) -> list[str]:
    """Return the plainest exact recipe: one decode, one branch a clip that takes its frames by their timestamps."""
    with av.open(source) as container:
        stream = best_stream(container)
        index, ratio = stream.index, stream.sample_aspect_ratio or 1
        size = even_size(Display(ratio).size(stream.width, stream.height), EncodePolicy().short_side)
    # Half a millisecond, as spans are rounded to milliseconds.
    branches = [
        f"[s{n}]trim={start - 0.0005:.4f}:{end - 0.0005:.4f},setpts=PTS-STARTPTS,"
        f"scale={size[0]}:{size[1]}:flags=area+accurate_rnd+bitexact,format=yuv420p[o{n}]"
        for n, (start, end) in enumerate(spans)
    ]
    split = f"[0:{index}]split={len(spans)}" + "".join(f"[s{n}]" for n in range(len(spans)))
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-threads", "1", "-to", f"{spans[-1].end + 0.2:.3f}"]
    command += ["-i", source, "-filter_complex_threads", "1", "-filter_complex", ";".join([split, *branches])]
    for n in range(len(spans)):
        command += ["-map", f"[o{n}]", "-fps_mode", "passthrough", "-c:v", "libx264", "-preset", preset, "-crf", "18"]
        command += ["-g", "12", "-flags", "+cgop", "-x264-params", "mbtree=0", "-threads", "1"]
        command += ["-movflags", "+faststart", str(out / f"{number}.{n}.mp4")]
    return command


def run_ffmpeg(work: list, preset: str, out: Path) -> float:
    """Return the processor seconds of ffmpeg over all sources."""
    commands = [ffmpeg_command(path, spans, preset, out, number) for number, (path, spans) in enumerate(work)]
    before = processor_seconds()
    for command in commands:
        subprocess.run(command, check=True)
    return processor_seconds() - before


def theirs(job: str) -> None:
    """Make the clips of a job with video2dataset, in a process of its own, and print what it and its ffmpeg took."""
    from video2dataset.subsamplers import ClippingSubsampler, ResolutionSubsampler

    task, delivered = json.loads(Path(job).read_text()), 0
    clipping = ClippingSubsampler(5, {"video": "mp4"}, precision="exact")
    resolution = ResolutionSubsampler("scale", video_size=EncodePolicy().short_side)
    before = processor_seconds()
    for number, (path, spans) in enumerate(task["work"]):
        streams, metas, error = clipping({"video": [Path(path).read_bytes()]}, {"key": str(number), "clips": spans})
        if error is None:
            streams, metas, error = resolution(streams, metas)
        if error is not None:
            print(f"{path}: {error}", file=sys.stderr)
            continue
        for place, video in enumerate(streams["video"]):
            (Path(task["out"]) / f"{number}.{place}.mp4").write_bytes(video)
            delivered += 1
    print(json.dumps({"seconds": processor_seconds() - before, "clips": delivered}))


def processor_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def wrong_clips(work: list, folder: Path) -> int:
    """Return how many of the delivered clips have not as many frames as their source shows in their span."""
    wrong = 0
    for number, (path, spans) in enumerate(work):
        timeline = read_timeline(path)
        clips = [(folder / f"{number}.{place}.mp4", span) for place, span in enumerate(spans)]
        wrong += sum(len(timeline.within(span)) != frames_in(clip) for clip, span in clips if clip.is_file())
    return wrong


def measure(work: list, preset: str, rounds: int, scratch: Path) -> dict:
    """Return the medians of a preset, with a line of processor seconds a round."""
    count, delivered, peaks, seconds = sum(len(spans) for _, spans in work), 0, [], defaultdict(list)
    places = {name: scratch / name for name in ("ffmpeg", "plain", "scored", "video2dataset")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    for _ in range(rounds):
        if FFMPEG:
            seconds["ffmpeg"].append(run_ffmpeg(work, preset, places["ffmpeg"]))
        for name in ("plain", "scored"):
            found = run_apart("ours", work, places[name], preset=preset, scored=name == "scored")
            seconds[name].append(found["seconds"])
            peaks.append(found["peak_gib"])
        if VIDEO2DATASET and preset == "medium":
            found = run_apart("theirs", work, places["video2dataset"])
            seconds["video2dataset"].append(found["seconds"])
            delivered = found["clips"]
        print(preset, {name: round(spent[-1], 2) for name, spent in seconds.items()}, flush=True)

    def ratio(name: str) -> float:
        return statistics.median(them / us for them, us in zip(seconds[name], seconds["plain"], strict=True))

    report = {
        "clips_per_cpu_second": count / statistics.median(seconds["plain"]),
        "scores_overhead": ratio("scored") - 1,
        "peak_gib": max(peaks),
        "wrong_clips": wrong_clips(work, places["plain"]),
    }
    if seconds["ffmpeg"]:
        report |= {
            "vs_ffmpeg_one_decode": ratio("ffmpeg"),
            "ffmpeg_clips_per_cpu_second": count / statistics.median(seconds["ffmpeg"]),
            "ffmpeg_wrong_clips": wrong_clips(work, places["ffmpeg"]),
        }
    if seconds["video2dataset"]:
        report |= {
            "vs_video2dataset": ratio("video2dataset") * count / delivered,
            "video2dataset_clips_per_cpu_second": delivered / statistics.median(seconds["video2dataset"]),
            "video2dataset_missing_clips": count - delivered,
            "video2dataset_wrong_clips": wrong_clips(work, places["video2dataset"]),
        }
    return report


def main(rounds: int = 3) -> None:
    """Measure, print a line a round, and write the report: of each figure the worse one of the two presets."""
    av.logging.set_level(av.logging.PANIC)
    sources = collect(HERE / "out" / "prep_sources")
    work = [(str(path), spans_in(path, number)) for number, path in enumerate(sources)]
    count = sum(len(spans) for _, spans in work)
    print(f"{len(work)} sources, {count} clips, {rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        presets = {preset: measure(work, preset, rounds, Path(scratch)) for preset in PRESETS}
    worse = {"vs_ffmpeg_one_decode": min, "vs_video2dataset": min, "clips_per_cpu_second": min}
    worse |= {"scores_overhead": max, "peak_gib": max}
    found = {name: [preset[name] for preset in presets.values() if name in preset] for name in worse}
    worst = {name: worse[name](values) for name, values in found.items() if values}
    report = {**worst, "sources": len(work), "clips": count, "rounds": rounds, "presets": presets}
    path = HERE / "out" / "prep.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] in (["ours"], ["theirs"]):
        {"ours": ours, "theirs": theirs}[sys.argv[1]](sys.argv[2])
    else:
        main(*map(int, sys.argv[1:]))
