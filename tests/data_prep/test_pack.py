import io
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset
from PIL import Image, ImageCms

from data_prep.cut.footage import FitPolicy, every_frame, fit_video, read_header, unfit
from tests.material.made_clips import by_decord, moving_square, write_video
from tests.material.packing import pack
from tests.material.processes.kills import killed_at_rename
from videodiff.data.loader.clips import Clips, Reader
from videodiff.data.order.buckets import Bucket
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter, read_captions, read_sample
from videodiff.data.video.decode import DecodeError, decode, probe
from videodiff.data.video.encode import encode
from videodiff.data.video.geometry import even_size

CLIPS = Path(__file__).resolve().parents[3] / "shared" / "clips"
GOOD = encode(moving_square(), 5.0)


def fill(folder, clips):
    """Write clips {name: video or (video, caption)} with their captions beside them."""
    folder.mkdir(exist_ok=True)
    for name, clip in clips.items():
        video, caption = clip if isinstance(clip, tuple) else (clip, f"caption of {name}")
        (folder / name).write_bytes(video)
        if caption is not None:
            (folder / name).with_suffix(".txt").write_text(caption)
    return folder


def rejected(out):
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def contents(root):
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


@pytest.fixture
def in_process(monkeypatch):
    """Let clips be prepared here: to start a process takes seconds."""
    monkeypatch.setattr("data_prep.pack.run_ordered", lambda function, tasks, workers, timeout: map(function, tasks))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder with one clip of every fate, packed by two workers."""
    root = tmp_path_factory.mktemp("pack")
    clips = {
        "good.mp4": GOOD,
        "av1.mkv": write_video(moving_square(10, 64, 64), "libsvtav1", container="matroska"),
        "cut.mp4": GOOD[: len(GOOD) * 3 // 4],
        "empty.mp4": b"",
        "noise.webm": bytes(range(256)) * 20,
        "silent.mp4": (GOOD, None),
        "blank.mp4": (GOOD, " \n"),
        "zlast.mp4": encode(moving_square(seed=5), 5.0),
    }
    progress = []
    report = pack(fill(root / "in", clips), root / "out", workers=2, progress=lambda *done: progress.append(done))
    return root, report, progress


def test_every_clip_is_packed_or_rejected_with_its_name_and_reason(packed):
    root, report, _ = packed
    assert (report.found, report.packed, len(report.rejected)) == (8, 3, 5)
    reasons = {rejection.name: rejection.reason for rejection in report.rejected}
    assert reasons == {
        "silent.mp4": "caption missing",
        "blank.mp4": "caption missing",
        "cut.mp4": "video undecodable",
        "empty.mp4": "video undecodable",
        "noise.webm": "video undecodable",
    }
    assert report.reasons == {"video undecodable": 3, "caption missing": 2}
    assert {line["name"]: line["reason"] for line in rejected(root / "out")} == reasons
    assert "3 of 8 clips packed" in report.format()
    assert "cut.mp4: video undecodable: " in report.format()


def test_what_is_packed_is_a_dataset_in_the_order_of_names(packed):
    root, _, _ = packed
    manifest = Manifest.load(root / "out")
    assert manifest.column("key").tolist() == ["av1", "good", "zlast"]
    members = read_sample(root / "out", manifest.row(1))
    assert members["mp4"] == GOOD
    assert read_captions(members) == ["caption of good.mp4"]


def test_only_what_is_unfit_is_encoded_again(packed):
    root, report, _ = packed
    assert report.reencoded == {"av1.mkv": "codec av1"}
    members = read_sample(root / "out", Manifest.load(root / "out").row(0))
    original = (root / "in" / "av1.mkv").read_bytes()
    assert read_header(members["mp4"]).codec == "h264"
    assert np.abs(decode(members["mp4"], range(10)).astype(int) - decode(original, range(10))).mean() < 4


def test_progress_counts_to_the_end(packed):
    assert packed[2] == [(done, 6) for done in range(1, 7)]


def test_the_number_of_workers_changes_nothing(packed, tmp_path):
    root, _, _ = packed
    pack(root / "in", tmp_path, workers=1)
    assert contents(tmp_path) == contents(root / "out")


def test_clips_without_caption_are_packed_on_request(tmp_path):
    source = fill(tmp_path / "in", {"a.mp4": (GOOD, None)})
    assert pack(source, tmp_path / "out", workers=1, require_caption=False).packed == 1
    row = Manifest.load(tmp_path / "out").row(0)
    assert row["captions"] == 0
    assert read_captions(read_sample(tmp_path / "out", row)) == []


def test_a_table_is_packed_with_its_provenance_and_missing_videos_are_told(tmp_path):
    source = fill(tmp_path / "in", {"a.mp4": GOOD})
    lines = [
        {"video": "a.mp4", "caption": "one", "source": "film", "licence": "CC-BY-4.0", "span": [0, 1]},
        {"video": "a.mp4", "caption": "two", "source": "film", "licence": "CC-BY-4.0"},
        {"video": "gone.mp4", "caption": "x"},
        {"video": "../../etc/passwd", "caption": "x"},
        {"video": "mute.mp4", "caption": None},
    ]
    (source / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = pack(source / "list.jsonl", tmp_path / "out", workers=1)
    row = Manifest.load(tmp_path / "out").row(0)
    assert (row["captions"], row["source"], row["licence"]) == (2, "film", "CC-BY-4.0")
    assert read_captions(read_sample(tmp_path / "out", row)) == ["one", "two"]
    assert report.reasons == {"path leaves the folder": 1, "caption missing": 1, "video missing": 1}
    assert report.found == report.packed + len(report.rejected)
    assert report.ignored_columns == ["span"]


def test_a_path_of_windows_is_told_how_to_write_it(tmp_path):
    source = fill(tmp_path / "in", {"a.mp4": GOOD})
    lines = [{"video": "a.mp4", "caption": "one"}, {"video": "sub\\b.mp4", "caption": "two"}]
    (source / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (missing,) = pack(source / "list.jsonl", tmp_path / "out", workers=1).rejected
    assert missing.detail.endswith("b.mp4; a path has / between its parts, not \\")


def test_a_clip_that_takes_too_long_is_rejected_and_its_process_killed(tmp_path):
    rng = np.random.default_rng(0)
    noise = np.tile(rng.integers(0, 256, (60, 360, 360, 3), dtype=np.uint8), (6, 1, 1, 1))
    slow = write_video(noise, pixels="yuv444p", preset="ultrafast")
    source = fill(tmp_path / "in", {"a.mp4": GOOD, "slow.mp4": slow})
    report = pack(source, tmp_path / "out", workers=1, timeout=0.3, crf=1)
    assert [(r.name, r.reason) for r in report.rejected] == [("slow.mp4", "video timeout")]
    assert report.packed == 1


def test_a_source_of_which_nothing_can_be_packed_leaves_the_reasons_alone(tmp_path, in_process):
    source, out = fill(tmp_path / "in", {"b.mp4": b"no video"}), tmp_path / "out"
    with pytest.raises(ValueError, match=r"found no clip in .* that can be packed: 1 rejected: video undecodable, the"):
        pack(source, out)
    assert [line["name"] for line in rejected(out)] == ["b.mp4"]
    assert [path.name for path in out.iterdir()] == ["rejected.jsonl"]
    fill(source, {"b.mp4": GOOD})
    assert pack(source, out).packed == 1
    assert not rejected(out)


def test_a_source_without_captions_is_one_line_that_says_what_to_do(tmp_path, in_process):
    # As CogVideo's trainer has them: two lists side by side.
    source = fill(tmp_path / "in", {"1.mp4": (GOOD, None), "2.mp4": (GOOD, None)})
    (source / "prompts.txt").write_text("a cat\na dog\n")
    with pytest.raises(ValueError, match="that can be packed") as told:
        pack(source, tmp_path / "out")
    assert str(told.value).partition("packed: ")[2] == (
        "2 rejected: caption missing (require_caption=false packs such clips), the first one: 1.mp4: found no "
        "caption, or an empty one; passed over: .txt without a video 1 (the captions of one video are in a file of its "
        "name, those of many in a table)"
    )


@pytest.mark.parametrize("gone", ["", "manifest.parquet", "shard-00000.tar"])
def test_a_folder_with_a_dataset_or_a_part_of_one_is_left_as_it_is(tmp_path, in_process, gone):
    source, out = fill(tmp_path / "in", {"a.mp4": GOOD}), tmp_path / "out"
    pack(source, out)
    if gone:
        (out / gone).unlink()
    before = contents(out)
    fill(source, {"b.mp4": b"no video"})
    with pytest.raises(ValueError, match=rf"out: found {out}/.* of another dataset, expected a folder without one"):
        pack(source, out)
    assert contents(out) == before


def test_a_call_killed_at_any_rename_is_finished_by_the_next_one(tmp_path, in_process):
    source = fill(tmp_path / "in", {f"{name}.mp4": encode(moving_square(seed=ord(name)), 5.0) for name in "abc"})
    pack(source, tmp_path / "whole", shard_bytes=1)
    expected, half_named = contents(tmp_path / "whole"), 0
    for number in itertools.count(1):
        out = tmp_path / str(number)
        if not killed_at_rename(number, lambda out=out: pack(source, out, shard_bytes=1)):
            break
        half_named += (out / "shard-00000.tar").exists() and not (out / "manifest.parquet").exists()
        pack(source, out, shard_bytes=1)
        assert contents(out) == expected
    # The second shard, the third one, the words and the manifest had no name yet.
    assert half_named == 4


def test_the_shards_of_others_stay_whatever_a_killed_call_left_beside_them(tmp_path, in_process):
    source, out = fill(tmp_path / "in", {"a.mp4": GOOD}), tmp_path / "out"
    assert killed_at_rename(2, lambda: pack(source, out))
    (out / "shard-00000.tar").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"out: found .*shard-00000\.tar of another dataset"):
        pack(source, out)
    assert (out / "shard-00000.tar").read_bytes() == b"mine"


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"short_side": 0}, {"timeout": 0}, {"crf": 52}])
def test_settings_that_cannot_be_are_an_error(tmp_path, wrong):
    with pytest.raises(ValueError, match="pack: found"):
        pack(tmp_path, tmp_path / "out", **wrong)


def test_a_fit_video_stays_as_it_is():
    video = write_video(moving_square(30, 64, 64), bf="3", g="10")
    assert fit_video(video, FitPolicy(720, 18)) == (video, probe(video), "", False)


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        (write_video(moving_square(10, 64, 64), "libx265"), "codec hevc"),
        (write_video(moving_square(10, 64, 64), pixels="yuv420p10le"), "pixels yuv420p10le"),
        (write_video(moving_square(10, 64, 64), pixels="yuvj420p"), "pixels yuvj420p"),
        (write_video(moving_square(10, 33, 47), pixels="yuv444p"), "pixels yuv444p"),
        (write_video(moving_square(10, 64, 64), container="matroska"), "container matroska"),
    ],
)
def test_what_decord_or_a_browser_may_not_show_is_encoded_again_and_shows_the_same(video, reason):
    fit, info, found = fit_video(video, FitPolicy(720, 18))[:3]
    assert found == reason
    header = read_header(fit)
    assert (header.codec, header.pixels, unfit(header, FitPolicy(720))) == ("h264", "yuv420p", "")
    assert (info, info.frames, info.fps) == (probe(fit), 10, 25.0)
    height, width = info.height, info.width
    shown = decode(video, range(10))[:, :height, :width]
    assert np.abs(decode(fit, range(10)).astype(int) - shown).mean() < 5


def test_a_large_video_is_scaled_down_to_the_short_side():
    fit, info, reason = fit_video(write_video(moving_square(5, 64, 96)), FitPolicy(32, 18))[:3]
    assert reason == "size 96x64"
    assert decode(fit, [0]).shape == (1, 32, 48, 3) == (1, info.height, info.width, 3)


@pytest.mark.parametrize(
    ("shown", "short", "expected"),
    [
        ((641, 361), 720, (640, 360)),
        ((1920, 1080), 720, (1280, 720)),
        ((1080, 1920), 540, (540, 960)),
        ((1, 1), 9, (2, 2)),
    ],
)
def test_sizes_are_even_and_keep_their_shape(shown, short, expected):
    assert even_size(shown, short) == expected


def test_frames_that_come_unevenly_are_put_on_a_steady_clock():
    frames, times = moving_square(10), [0, 1, 2, 3, 7, 8, 9, 10, 11, 12]
    fit, info, reason = fit_video(write_video(frames, times=times), FitPolicy(720, 10))[:3]
    assert reason == "uneven frame times"
    assert (info.fps, info.frames) == (25.0, 13)
    shown = [np.abs(frames.astype(int) - image).mean(axis=(1, 2, 3)).argmin() for image in decode(fit, range(13))]
    assert shown == [0, 1, 2, 3, 3, 3, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("gap", [1, 300, 900], ids=["a tick", "3 ms", "10 ms"])
@pytest.mark.parametrize("pairs", [2, 15])
def test_frames_that_come_in_pairs_keep_their_mean_rate(gap, pairs):
    # 15 pairs a second, in ticks of a ninety-thousandth.
    times = [6000 * pair + place * gap for pair in range(pairs) for place in range(2)]
    found = in_ticks(times)
    header = read_header(found)
    assert header.fps == 30
    _, info, reason = fit_video(found, FitPolicy(720, 18))[:3]
    assert reason == "uneven frame times"
    assert info.duration == pytest.approx(pairs / 15, abs=1.5 / 30)


def test_a_change_of_the_rate_is_put_on_one_clock():
    times = [*(3750 * number for number in range(48)), *(180_000 + 3000 * number for number in range(60))]
    _, info, reason = fit_video(in_ticks(times), FitPolicy(720, 18))[:3]
    assert reason == "uneven frame times"
    assert info.fps in (24, 30)
    assert info.duration == pytest.approx(4, abs=1.5 / 24)


def test_the_last_frame_stays_as_long_as_its_file_says():
    frames, ends = moving_square(5), io.BytesIO()
    with av.open(ends, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        packets = []
        for image in frames:
            packets += stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
        packets += stream.encode(None)
        packets[-1].duration = 25
        for packet in packets:
            out.mux(packet)
    _, info, reason = fit_video(ends.getvalue(), FitPolicy(720, 18))[:3]
    assert reason == "uneven frame times"
    assert (info.fps, info.frames) == (25, 29)


def in_ticks(times: list[int]) -> bytes:
    """Return a video whose frames are shown at these ninety-thousandths of a second."""
    file, unit = io.BytesIO(), Fraction(1, 90_000)
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=30, options={"bf": "0", "video_track_timescale": "90000"})
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.time_base = 32, 32, "yuv420p", unit
        stream.time_base = unit
        for time, image in zip(times, moving_square(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, unit
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def test_a_video_that_a_phone_held_sideways_is_turned_upright():
    frames = np.zeros((4, 48, 64, 3), dtype=np.uint8)
    frames[:, :24] = (255, 0, 0)
    video = bytearray(write_video(frames))
    # The matrix of the track header: x' = -y, y' = x is a quarter turn clockwise, so what was above comes to the right.
    matrix = video.index(b"tkhd") + 4 + 40
    one, minus_one = (1 << 16).to_bytes(4, "big"), ((1 << 32) - (1 << 16)).to_bytes(4, "big")
    video[matrix : matrix + 20] = bytes(4) + one + bytes(4) + minus_one + bytes(4)
    fit, _, reason = fit_video(bytes(video), FitPolicy(720, 18))[:3]
    assert reason.startswith("rotated")
    (shown,) = decode(fit, [1])
    assert shown.shape == (64, 48, 3)
    assert shown[10, 40].tolist() > [240, 0, 0]
    assert shown[50, 8].max() < 15


def test_hidden_frames_of_an_edit_list_are_left_out():
    video = bytearray(write_video(moving_square(20, 64, 64), bf="0", g="50"))
    at = video.index(b"elst") + 12
    # The edit list: 4 bytes of duration, then where in the media it begins; 5 of 20 frames are hidden.
    tick = int.from_bytes(video[video.index(b"mdhd") + 16 : video.index(b"mdhd") + 20], "big") // 25
    video[at + 4 : at + 8] = (5 * tick).to_bytes(4, "big")
    fit, info, reason = fit_video(bytes(video), FitPolicy(720, 10))[:3]
    assert reason == "5 hidden frames"
    assert info.frames == 15
    first = decode(fit, [0])[0].astype(int)
    assert np.abs(moving_square(20, 64, 64).astype(int) - first).mean(axis=(1, 2, 3)).argmin() == 5


def test_a_video_that_was_trimmed_by_its_edit_list_is_whole():
    """As phones trim: all frames stay in the file, and the list shows 20 of the 60 that the header counts."""
    video = bytearray(write_video(moving_square(60, 64, 64), g="10", bf="2"))
    at, second = video.index(b"elst") + 12, 1000
    assert int.from_bytes(video[at : at + 4], "big") == 60 * second // 25
    video[at : at + 4] = (20 * second // 25).to_bytes(4, "big")
    header = read_header(bytes(video))
    assert (header.frames, header.hidden > 0) == (20, True)
    fit, info, _ = fit_video(bytes(video), FitPolicy(720, 10))[:3]
    assert (info.frames, info.duration) == (20, 0.8)
    assert np.abs(decode(fit, [19])[0].astype(int) - moving_square(60, 64, 64)[19]).mean() < 4


def test_a_frame_that_stays_is_counted_twice_in_the_header_of_an_avi():
    times = [*range(5), *range(6, 16)]
    video = write_video(moving_square(15, 64, 64), "mpeg4", container="avi", times=times, bf="0")
    with av.open(io.BytesIO(video)) as container:
        assert container.streams.video[0].frames == 16
    _, info, _ = fit_video(video, FitPolicy(720, 18))[:3]
    assert (info.frames, info.fps) == (16, 25)


def test_an_open_group_of_pictures_that_decord_misreads_is_encoded_again():
    rng = np.random.default_rng(0)
    still = rng.integers(0, 128, (64, 64, 3), dtype=np.uint8)
    frames = np.stack([np.roll(still, 3 * t, axis=1) + np.uint8(t) for t in range(60)])
    params = "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"
    video = write_video(frames, **{"x264-params": params})
    truth = decode(video, range(60)).astype(int)

    def wrong(read):
        return np.abs(read - truth).mean(axis=(1, 2, 3)).max()

    assert wrong(np.concatenate([by_decord(video, [number]) for number in range(60)])) > 10
    fit, _, reason = fit_video(video, FitPolicy(720, 1))[:3]
    assert reason.startswith("decord is off by")
    assert wrong(np.concatenate([by_decord(fit, [number]) for number in range(60)])) < 5


def test_a_video_that_ends_before_its_header_says_is_an_error():
    video = encode(np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8), 5.0)
    with pytest.raises(DecodeError, match=r"found \d+ frames, expected 20 as in its header"):
        fit_video(video[: len(video) // 2], FitPolicy(720, 18))


@pytest.mark.parametrize("promised", [7, 9])
def test_a_video_of_which_not_every_frame_decodes_is_an_error(promised):
    header = replace(read_header(GOOD), frames=promised)
    with pytest.raises(DecodeError, match=f"found 8 frames that decode, expected {promised}"):
        list(every_frame(GOOD, header))


def test_a_damaged_video_is_an_error():
    video = bytearray(encode(moving_square(20, 64, 64), 5.0))
    middle = (video.index(b"mdat") + len(video)) // 2
    video[middle : middle + 200] = bytes(200)
    with pytest.raises(DecodeError, match=r"damaged|cannot be decoded|that decode"):
        fit_video(bytes(video), FitPolicy(720, 18))


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("torchcodec_av1_video.mkv", "codec av1"),
        ("torchcodec_h264_10bits.mp4", "pixels yuv420p10le"),
        ("torchcodec_h265_video.mp4", "codec hevc"),
        ("torchcodec_bt709_full_range.mp4", "pixels yuvj420p"),
        ("derived_neardup_bbb_240p.mp4", ""),
    ],
)
def test_real_clips_come_out_fit(name, reason):
    fit, info, found = fit_video((CLIPS / name).read_bytes(), FitPolicy(240, 18))[:3]
    assert found == reason
    assert (info, unfit(read_header(fit), FitPolicy(240))) == (probe(fit), "")
    assert len(decode(fit, [0, info.frames - 1])) == 2


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
def test_a_real_truncated_clip_is_an_error():
    with pytest.raises(DecodeError, match="cannot be opened"):
        fit_video((CLIPS / "derived_truncated_bbb.mp4").read_bytes(), FitPolicy(240, 18))


def test_names_that_are_no_keys_are_packed_and_what_is_passed_over_is_told(tmp_path):
    names = [b"caf\xe9.mp4", b" blank.mp4", b"back\\slash.mp4", b"new\nline.mp4", b"a.b.mp4", b"a_b.mp4", b"good.mp4"]
    source = tmp_path / "in"
    source.mkdir()
    for name in names:
        path = Path(os.fsdecode(bytes(source) + b"/" + name))
        path.write_bytes(GOOD)
        path.with_suffix(".txt").write_text("a caption")
    (source / "empty.mp4").touch()
    (source / "empty.txt").write_text("no video")
    Path(os.fsdecode(bytes(source) + b"/torn\x1b[2J.mp4")).write_bytes(b"no video")
    for name in ("a.srt", "b.srt", "LICENSE"):
        (source / name).touch()
    report = pack(source, tmp_path / "out", workers=1)
    assert report.packed == len(names)
    assert {one.reason for one in report.rejected} == {"video undecodable", "caption missing"}
    manifest = Manifest.load(tmp_path / "out")
    found = [read_sample(tmp_path / "out", manifest.row(number)) for number in range(len(names))]
    notes = [json.loads(members["json"]) for members in found]
    kept = {bytes.fromhex(n["name_bytes"]) if "name_bytes" in n else n["name"].encode() for n in notes}
    assert kept == set(names)
    read = webdataset.WebDataset([str(tmp_path / "out" / "shard-00000.tar")], shardshuffle=False)
    assert [each["__key__"] for each in read] == manifest.column("key").tolist()
    text = report.format()
    assert "passed over: .srt 2, no ending 1" in text
    assert text.isascii()
    assert "\x1b" not in text


def test_captions_that_are_too_long_together_cost_their_clip_only(tmp_path, in_process):
    """Each file may be read; the json of the clip would hold the captions of both."""
    source = fill(tmp_path / "in", {"a.mp4": (GOOD, "a " * 1_500_000), "b.mp4": GOOD})
    (source / "a.json").write_text(json.dumps({"caption": "b " * 1_500_000}))
    assert pack(source, tmp_path / "out", workers=1).packed == 1
    ((name, reason, detail),) = (each.values() for each in rejected(tmp_path / "out"))
    assert (name, reason) == ("a.mp4", "caption unreadable")
    assert detail.startswith("all captions together: json: found ")


def test_clips_without_a_caption_are_counted(tmp_path, in_process):
    source = fill(tmp_path / "in", {"a.mp4": (GOOD, None), "b.mp4": GOOD})
    report = pack(source, tmp_path / "out", workers=1, require_caption=False)
    assert "1 clip has no caption" in report.format()


def test_containers_and_moving_pictures_are_packed_whatever_their_endings(tmp_path, in_process):
    frames = moving_square(6, 32, 48)
    kinds = {"A.TS": ("mpegts", "mpeg2video", "yuv420p"), "b.m4v": ("mp4", "mpeg4", "yuv420p"),
             "c.gif": ("gif", "gif", "rgb8"), "d.wmv": ("asf", "wmv2", "yuv420p"), "e.apng": ("apng", "apng", "rgb24"),
             "f.mpg": ("mpeg", "mpeg2video", "yuv420p"), "g.FLV": ("flv", "flv", "yuv420p")}  # fmt: skip
    clips = {name: write_video(frames, codec, pixels, container) for name, (container, codec, pixels) in kinds.items()}
    report = pack(fill(tmp_path / "in", clips), tmp_path / "out", workers=1)
    assert report.rejected == []
    manifest = Manifest.load(tmp_path / "out")
    rows = [manifest.row(number) for number in range(len(manifest))]
    assert [(row["key"], row["frames"], row["width"], row["height"]) for row in rows] == [
        (name.partition(".")[0], 6, 48, 32) for name in kinds
    ]
    for row in rows:
        shown = decode(read_sample(tmp_path / "out", row)["mp4"], range(6)).astype(int)
        assert np.abs(shown - frames).mean() < 25, row["key"]


def test_an_animated_webp_is_packed_with_its_times_and_on_white(tmp_path, in_process):
    frames = [Image.new("RGBA", (48, 32), (255, 0, 0, 255 - 51 * number)) for number in range(5)]
    file = io.BytesIO()
    times = [100, 100, 300, 100, 100]
    # Chromium 156 ignores orientation and profile of an animated WebP; this profile swaps red and blue.
    exif, profile = Image.Exif(), bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    exif[0x0112] = 6
    red, blue = (slice(profile.index(tag, 128) + 4, profile.index(tag, 128) + 12) for tag in (b"rXYZ", b"bXYZ"))
    profile[red], profile[blue] = profile[blue], profile[red]
    more = {"append_images": frames[1:], "duration": times, "exif": exif.tobytes(), "icc_profile": bytes(profile)}
    frames[0].save(file, "WEBP", save_all=True, lossless=True, **more)
    source = fill(
        tmp_path / "in", {"a.webp": file.getvalue(), "b.webp": file.getvalue()[:150], "c.webp": picture("WEBP")}
    )
    report = pack(source, tmp_path / "out", workers=1, crf=1)
    assert [(one.name, one.reason) for one in report.rejected] == [("b.webp", "video undecodable")]
    manifest = Manifest.load(tmp_path / "out")
    rows = [manifest.row(number) for number in range(2)]
    assert [(row["key"], row["frames"], row["fps"]) for row in rows] == [("a", 7, 10.0), ("c", 1, rows[1]["fps"])]
    assert (rows[0]["width"], rows[0]["height"]) == (48, 32)
    shown = decode(read_sample(tmp_path / "out", rows[0])["mp4"], range(7))[:, 16, 24].astype(int)
    # Red over white of these opacities: green is what shines through.
    assert np.abs(shown[:, 1] - [0, 51, 102, 102, 102, 153, 204]).max() < 8
    assert shown[:, 0].min() > 245


def test_the_error_that_ended_the_work_is_the_one_that_is_shown(tmp_path, monkeypatch, in_process):
    source = fill(tmp_path / "in", {"a.mp4": GOOD})

    def full(path, data):
        raise OSError(28, "No space left on device")

    def broken(*_):
        raise ValueError("the first error")

    monkeypatch.setattr("data_prep.pack.write_whole", full)
    monkeypatch.setattr("data_prep.pack.record", broken)
    with pytest.raises(ValueError, match="the first error") as caught:
        pack(source, tmp_path / "out", workers=1)
    assert "rejected.jsonl could not be written: [Errno 28]" in caught.value.__notes__[0]


def test_a_dataset_takes_its_name_when_its_rejected_clips_are_on_the_disk(tmp_path, monkeypatch, in_process):
    listed, commit = [], ShardWriter._commit

    def committed(writer):
        listed.extend(rejected(writer.root))
        commit(writer)

    monkeypatch.setattr(ShardWriter, "_commit", committed)
    pack(fill(tmp_path / "in", {"a.mp4": GOOD, "b.mp4": b"no video"}), tmp_path / "out")
    assert [line["name"] for line in listed] == ["b.mp4"]


def picture(kind, size=(48, 32), mode="RGB", rotated=False):
    """Return an image whose left half is red; with `rotated`, lying on its side with a note to turn it."""
    image = Image.new(mode, size, (0, 0, 255) if mode == "RGB" else (0, 0, 255, 255))
    image.paste((255, 0, 0) if mode == "RGB" else (255, 0, 0, 255), (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    if rotated:
        image, exif[0x0112] = image.rotate(90, expand=True), 6
    file = io.BytesIO()
    image.save(file, kind, quality=95, exif=exif)
    return file.getvalue()


def test_images_are_packed_as_videos_of_one_frame_and_trained_on(tmp_path):
    images = {
        "a.jpg": picture("JPEG"),
        "b.png": picture("PNG", (37, 29), "RGBA"),
        "c.webp": picture("WEBP"),
        "d.jpeg": picture("JPEG", rotated=True),
        "good.mp4": GOOD,
        "good.jpg": (picture("JPEG"), None),
        "torn.jpg": picture("JPEG")[:200],
        "text.png": b"no picture",
    }
    report = pack(fill(tmp_path / "in", images), tmp_path / "out", workers=1)
    assert report.packed == 5
    assert {(r.name, r.reason) for r in report.rejected} == {
        ("good.jpg", "picture of a video"),
        ("torn.jpg", "video undecodable"),
        ("text.png", "video undecodable"),
    }
    manifest = Manifest.load(tmp_path / "out")
    found = {row["key"]: row for row in map(manifest.row, range(len(manifest)))}
    assert {key: (row["frames"], row["width"], row["height"]) for key, row in found.items()} == {
        "a": (1, 48, 32), "b": (1, 36, 28), "c": (1, 48, 32), "d": (1, 48, 32), "good": (8, 32, 32),
    }  # fmt: skip
    clips = Clips(manifest, [Bucket(4, 16, 16), Bucket(1, 16, 24)])
    for number, key in enumerate("abcd"):
        clip = Reader([manifest.root]).alone(clips.task(number, bucket=1))
        assert clip["key"] == key
        assert clip["video"].shape == (1, 16, 24, 3)
        left, right = clip["video"][0, :, :8].mean((0, 1)), clip["video"][0, :, -8:].mean((0, 1))
        assert left[0] > 200 > 60 > left[2]
        assert right[2] > 200 > 60 > right[0]


@pytest.mark.parametrize("module", ["data_prep.pack", "data_prep.produce"])
def test_a_process_that_makes_clips_does_not_wait_for_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
