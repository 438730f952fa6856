"""videodiff arrange, on files as `sample` and `evaluate` write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.material.made_clips import moving_square
from tests.material.processes.kills import killed_at_rename
from videodiff.generation.files import add_clip, write_clip

Call = Callable[..., tuple[int, str, str]]
STILL, MOVING = "In a still frame, a stop sign", "a dog running happily"


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    """Write clips as `videodiff sample` does: 5 of one prompt, 5 of another, one of a third."""
    rng = np.random.default_rng(0)
    for number, prompt in enumerate([STILL] * 5 + [MOVING] * 5 + ["a cat"]):
        frames = moving_square(12, 64, 64) if prompt == MOVING else rng.integers(90, 110 + number, (12, 64, 64, 3))
        add_clip(tmp_path / "made", frames.astype(np.uint8), 12, 8.0, {"prompt": prompt, "seed": number, "given": None})
    info = [{"prompt_en": STILL, "dimension": ["scene"]}, {"prompt_en": MOVING, "dimension": ["human_action"]}]
    (tmp_path / "info.json").write_text(json.dumps(info))
    return tmp_path


def as_vbench_measures(path: Path) -> float:
    """Return temporal flickering as VBench's own code computes it: OpenCV's frames, float32, means of means."""
    video, frames = cv2.VideoCapture(str(path)), []
    while True:
        more, frame = video.read()
        if not more:
            break
        frames.append(np.array(frame, dtype=np.float32))
    steps = [np.mean(cv2.absdiff(one, other)) for one, other in pairwise(frames)]
    return (255.0 - np.mean(steps).item()) / 255.0


def test_clips_get_the_names_of_vbench_and_the_figure_of_its_own_code(call: Call, sampled: Path) -> None:
    how = ["arrange", str(sampled / "made"), "suite=vbench", f"info={sampled}/info.json", f"out={sampled}/vbench"]
    status, out, err = call(*how)
    assert status == 0, err
    assert "10 clips as vbench reads them" in out
    names = sorted(path.name for path in (sampled / "vbench").iterdir())
    assert names == sorted(f"{prompt}-{i}.mp4" for prompt in (STILL, MOVING) for i in range(5))
    assert (sampled / f"vbench/{MOVING}-0.mp4").read_bytes() == (sampled / "made/005.mp4").read_bytes()
    mean, videos = json.loads((sampled / "vbench_eval_results.json").read_text())["temporal_flickering"]
    for video in videos:
        assert video["video_results"] == pytest.approx(as_vbench_measures(Path(video["video_path"])), abs=1e-6)
    assert mean == pytest.approx(np.mean([video["video_results"] for video in videos]))
    info = json.loads((sampled / "vbench_full_info.json").read_text())
    assert {entry["prompt_en"]: len(entry["video_list"]) for entry in info} == {STILL: 5, MOVING: 5}
    status, _, err = call(*how)
    assert (status, err.count("\n")) == (1, 1)
    assert "out: found" in err
    assert "expected a name that is free" in err


def test_a_call_that_was_killed_is_made_again(call: Call, sampled: Path) -> None:
    for number in range(1, 5):
        out = sampled / f"{number}/vbench"
        how = ["arrange", str(sampled / "made"), "suite=vbench", f"info={sampled}/info.json", f"out={out}"]
        if killed_at_rename(number, lambda how=how: call(*how)):
            assert not out.exists()
            status, _, err = call(*how)
            assert status == 0, err
        else:
            assert number == 4
        names = sorted(path.name for path in out.parent.iterdir())
        assert names == ["vbench", "vbench_eval_results.json", "vbench_full_info.json"]


def test_a_clip_that_is_a_symbolic_link_is_arranged_itself(call: Call, sampled: Path) -> None:
    (sampled / "made/000.mp4").rename(sampled / "elsewhere.mp4")
    (sampled / "made/000.mp4").symlink_to("../elsewhere.mp4")
    how = ["arrange", str(sampled / "made"), "suite=vbench", f"info={sampled}/info.json", f"out={sampled}/a/vbench"]
    status, _, err = call(*how)
    assert status == 0, err
    assert (sampled / f"a/vbench/{STILL}-0.mp4").read_bytes() == (sampled / "elsewhere.mp4").read_bytes()
    assert not (sampled / f"a/vbench/{STILL}-0.mp4").is_symlink()


def test_missing_clips_are_refused_with_their_names_or_counted(call: Call, sampled: Path) -> None:
    for number in (6, 9):
        (sampled / f"made/{number:03d}.json").unlink()
    how = ["arrange", str(sampled / "made"), "suite=vbench", f"info={sampled}/info.json", f"out={sampled}/vbench"]
    status, out, err = call(*how)
    assert (status, err.count("\n")) == (1, 1)
    assert (
        f"found 8 of 10 clips that vbench reads in {sampled}/made, expected all of them, missing {MOVING}-3.mp4" in err
    )
    assert "2 files that `videodiff sample` did not make, first 006.mp4" in out
    assert not (sampled / "vbench").exists()
    status, out, err = call(*how, "complete=false")
    assert status == 0, err
    assert f"2 of 10 clips are missing, the first one: {MOVING}-3.mp4" in out
    assert len(list((sampled / "vbench").iterdir())) == 8


def test_phygenbench_gets_a_number_a_prompt(call: Call, sampled: Path) -> None:
    prompts = [{"caption": prompt, "physical_laws": "x", "sub_category": "y"} for prompt in ("a cat", MOVING)]
    (sampled / "prompts.json").write_text(json.dumps(prompts))
    how = ["arrange", str(sampled / "made"), "suite=phygenbench", f"out={sampled}/phygenbench"]
    status, out, err = call(*how, f"info={sampled}/prompts.json")
    assert status == 0, err
    assert "2 clips as phygenbench reads them" in out
    made = {path.name: path.read_bytes() for path in (sampled / "phygenbench").iterdir()}
    clips = {"output_video_1.mp4": "010.mp4", "output_video_2.mp4": "005.mp4"}
    assert made == {name: (sampled / "made" / clip).read_bytes() for name, clip in clips.items()}
    for wrong, text, message in (
        ("lines.json", "[1]", "lines.json: record 0: found no prompt, expected a text"),
        ("half.json", b"\xff", "half.json: found bytes that are no UTF-8 at 0"),
    ):
        (sampled / wrong).write_bytes(text if isinstance(text, bytes) else text.encode())
        status, _, err = call(*how[:-1], f"out={sampled}/other", f"info={sampled}/{wrong}")
        assert (status, err.count("\n"), err.count("info:")) == (1, 1, 1), err
        assert message in err


def test_vbench_2_gets_a_folder_a_dimension(call: Call, sampled: Path) -> None:
    (sampled / "info.json").write_text(json.dumps([{"prompt_en": MOVING, "dimension": ["Material"]}]))
    status, _, err = call(
        "arrange", str(sampled / "made"), "suite=vbench2", f"info={sampled}/info.json", f"out={sampled}/v2"
    )
    assert status == 0, err
    names = sorted(path.relative_to(sampled / "v2").as_posix() for path in (sampled / "v2").rglob("*.mp4"))
    assert names == [f"Material/{MOVING}-{i}.mp4" for i in range(3)]


def test_physics_iq_gets_its_names_and_no_clip_of_another_length(call: Call, tmp_path: Path) -> None:
    table = "generated_video_name,scenario\n0007_perspective-left_trimmed-duck.mp4,0007_a_take-1_b.mp4\n"
    # As tables of Windows begin.
    (tmp_path / "descriptions.csv").write_text(table, encoding="utf-8-sig")
    given = {"path": "switch-frames/0007_switch-frames_left_duck.jpg", "sha256": "0"}
    path = add_clip(tmp_path / "made", moving_square(40, 32, 32), 40, 8.0, {"prompt": "A duck.", "given": given})
    how = ["arrange", str(tmp_path / "made"), "suite=physics_iq", f"info={tmp_path}/descriptions.csv"]
    status, _, err = call(*how, f"out={tmp_path}/model")
    assert status == 0, err
    assert [one.name for one in (tmp_path / "model").iterdir()] == ["0007_perspective-left_trimmed-duck.mp4"]
    write_clip(path, moving_square(41, 32, 32), 8.0)
    status, _, err = call(*how, f"out={tmp_path}/longer")
    assert (status, err.count("\n")) == (1, 1)
    assert "000.mp4: found a length of 5.125 s, expected 5 s as Physics-IQ does" in err


def test_tools_for_fvd_get_sampled_and_true_clips_side_by_side(call: Call, tmp_path: Path) -> None:
    run, records = tmp_path / "run", []
    for i in range(3):
        record = {"task": "continuation"}
        for name in ("sampled", "truth"):
            record[name] = f"evaluation/0001/{i}_{name}.mp4"
            (run / record[name]).parent.mkdir(parents=True, exist_ok=True)
            write_clip(run / record[name], moving_square(8 + i, 16, 16), 8.0)
        records.append(record)
    records.append({"task": "text_to_video", "sampled": "evaluation/0001/0_sampled.mp4", "truth": None})
    (run / "evaluation/clips.json").write_text(json.dumps(records))
    status, _, err = call("arrange", str(run), "suite=fvd", f"out={tmp_path}/fvd")
    assert status == 0, err
    for kind, name in (("fake", "sampled"), ("real", "truth")):
        assert sorted(path.name for path in (tmp_path / "fvd" / kind).iterdir()) == [f"{i:05d}.mp4" for i in range(3)]
        found = (tmp_path / f"fvd/{kind}/00002.mp4").read_bytes()
        assert found == (run / f"evaluation/0001/2_{name}.mp4").read_bytes()
    records[0]["sampled"] = "../../elsewhere.mp4"
    (run / "evaluation/clips.json").write_text(json.dumps(records))
    status, _, err = call("arrange", str(run), "suite=fvd", f"out={tmp_path}/again")
    assert (status, err.count("\n")) == (1, 1)
    assert "expected a video in this folder" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["suite=vbench"], "info: found null, expected the list of prompts of the suite, VBench_full_info.json"),
        (["suite=vbench2", "info=nowhere.json"], "info: found no file nowhere.json"),
        (["suite=vbanch"], "expected one of vbench, vbench2, phygenbench, physics_iq, fvd"),
        (["suite=fvd"], "clips.json, expected a run that was evaluated"),
        (
            ["suite=vbench", "info={sampled}/bad.json"],
            "entry 0: found \"{{'prompt': 1}}\", expected prompt_en",
        ),
        (["suite=vbench", "info={sampled}/empty.json"], "empty.json: found an empty list, expected the prompts"),
        (["suite=physics_iq", "info={sampled}/latin.csv"], "latin.csv: found bytes that are no UTF-8 at 25, expected"),
        (["suite=physics_iq", "info=x", "dimensions=[a]"], "dimensions: found ['a'] with suite=physics_iq"),
        (["suite=fvd", "source=nowhere"], "source: found no folder nowhere, expected clips of `videodiff sample`"),
        (["suite=fvd", "info=x"], "info: found x with suite=fvd, which has none"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(call: Call, sampled: Path, more: list, message: str) -> None:
    (sampled / "bad.json").write_text(json.dumps([{"prompt": 1}]))
    (sampled / "empty.json").write_text("[]")
    (sampled / "latin.csv").write_bytes("generated_video_name\n0007ä.mp4".encode("latin-1"))
    words = [word.format(sampled=sampled) for word in more]
    source = next((word for word in words if word.startswith("source=")), f"source={sampled}/made")
    status, _, err = call("arrange", source, *words, f"out={sampled}/out")
    assert (status, err.count("\n")) == (1, 1), err
    assert message.replace("{{", "{").replace("}}", "}") in err
    assert not (sampled / "out").exists()
