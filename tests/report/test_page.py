import base64
import hashlib
import json
import os
import re

import numpy as np
import pytest

from tests.material.report_run import evaluation, write_run
from tests.material.servers.browser import BROWSERS, seen_by
from videodiff.data.video.encode import encode
from videodiff.report.page import as_example, write_hero, write_report
from videodiff.report.run import Clip

HOSTILE = '"><script>alert(1)</script><img src=http://example.org/x.png>'
SECTIONS = ("summary", "samples", "strips", "measurements", "curves", "learning", "configuration")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "bouncing", clips=2)


@pytest.fixture(scope="module")
def page(run):
    return write_report(run).read_text()


@pytest.fixture
def bare(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    return tmp_path


def test_every_section_is_on_the_page(page):
    assert [name for name in SECTIONS if f'id="{name}"' not in page] == []


def test_the_page_refers_to_nothing_outside_itself(page):
    targets = re.findall(r"""(?:src|href|srcset|action|poster)\s*=\s*["']?([^"'\s>]+)""", page)
    targets += re.findall(r"""url\(\s*["']?([^"')]+)""", page)
    assert len(targets) > 20
    assert [target[:60] for target in targets if not target.startswith(("data:", "#"))] == []
    assert "@import" not in page


def test_the_only_script_is_the_one_that_the_policy_allows(page):
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    allowed = re.search(r"script-src 'sha256-([^']+)'", page)[1]
    assert base64.b64decode(allowed) == hashlib.sha256(script.encode()).digest()
    assert "default-src 'none'" in page


def test_every_video_of_the_run_is_embedded_whole(run, page):
    embedded = {base64.b64decode(data) for data in re.findall(r"data:video/mp4;base64,([^\"]+)", page)}
    on_disk = {path.read_bytes() for path in run.rglob("*.mp4") if path.name not in ("2_truth.mp4", "3_truth.mp4")}
    assert embedded == on_disk


def test_videos_loop_muted_in_place_and_keep_their_pixels(page):
    videos = re.findall(r"<video ([^>]*?)src=", page)
    assert videos
    assert all("autoplay loop muted playsinline" in video and "tiny" in video for video in videos)
    assert re.search(r"\.tiny \{ image-rendering: pixelated", page)


def test_captions_and_every_other_text_are_escaped(tmp_path):
    run = write_run(tmp_path / "a&b", clips=1, caption=HOSTILE)
    evaluated = evaluation()
    evaluated["dataset"] = evaluated["table"][1]["name"] = HOSTILE
    (run / "evaluation.json").write_text(json.dumps(evaluated))
    (run / "config.yaml").write_text(f"x: {HOSTILE}\n")
    (run / "command.txt").write_text(HOSTILE)
    (run / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE, "machine": HOSTILE}))
    (run / "metrics.csv").write_text(f"step,lr/{HOSTILE.replace(chr(34), '')},lr\n1,2,3\n2,3,4\n")
    page = write_report(run).read_text()
    assert page.count("<script") == 1
    assert "<img src=http" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 10
    assert "a&amp;b" in page


def test_the_summary_says_on_which_dataset_targets_are_met_or_missed(page):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))
    assert "The evaluation on datasets/held_out gives a velocity error of 0.0412" in text
    assert "target ≤ 0.05, met" in text
    assert "target ≥ 0.95, missed" in text


def test_the_best_predictor_is_bold_and_the_floor_does_not_compete(page):
    rows = dict(re.findall(r'<tr class="(model|floor)[^"]*">(.*?)</tr>', page, re.S))
    assert "<b>0.0412<small>" in rows["model"]
    assert "<b>" not in rows["floor"]


def test_samples_of_training_stand_under_what_they_were_made_from(page):
    learning = page[page.index('<section id="learning">') :]
    assert learning.count('<p class="note">sample') == 3
    assert "&lt;b&gt;" in learning
    assert "<b>" not in learning


def test_a_bare_run_says_what_is_absent_and_what_makes_it(bare):
    page = write_report(bare).read_text()
    absent = re.findall(r'class="absent">(.*?) <code>(.*?)</code>', page)
    assert {name for name in SECTIONS if f'id="{name}"' in page} == set(SECTIONS)
    assert any("metrics.csv" in what and command == f"videodiff train name={bare.name}" for what, command in absent)
    assert any("evaluation.json" in what and "videodiff evaluate" in command for what, command in absent)
    assert any("clips.json" in what for what, _ in absent)
    assert any("samples/" in what for what, _ in absent)
    assert "<video" not in page


@pytest.mark.parametrize(("at", "typed"), [("..", "{name}"), (".", "."), ("../..", "{parent}/{name}")])
def test_a_command_names_the_run_as_it_is_typed_where_the_page_was_made(bare, monkeypatch, at, typed):
    monkeypatch.chdir(bare / at)
    page = write_report(os.path.relpath(bare)).read_text()
    assert f"<code>videodiff evaluate {typed.format(name=bare.name, parent=bare.parent.name)}</code>" in page


def test_a_run_without_a_log_was_trained_as_far_as_its_checkpoints(bare):
    assert "Nothing has been trained" in write_report(bare).read_text()
    for name in ("step_00000900", "step_00002000", "step_00003000", "step_best"):
        (bare / "checkpoints" / name).mkdir(parents=True)
    # The third one was not written to its end.
    for name in ("step_00000900", "step_00002000", "step_best"):
        (bare / "checkpoints" / name / "checkpoint.json").write_text("{}")
    text = write_report(bare).read_text()
    assert "Trained to step 2,000." in text
    assert "Nothing has been trained" not in text


def test_a_loss_that_is_not_finite_is_said(bare):
    (bare / "metrics.csv").write_text("step,train/loss\n10,0.5\n20,nan\n30,nan\n")
    assert "not finite at 2 logged steps, first at step 20" in write_report(bare).read_text()


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no config\.yaml, expected a run folder"):
        write_report(tmp_path)


def test_a_malformed_evaluation_names_file_and_place(bare):
    (bare / "evaluation.json").write_text('{"velocity_error": 0.1,\n "table": [}')
    with pytest.raises(ValueError, match=r"evaluation\.json: line 2, column 12"):
        write_report(bare)
    (bare / "evaluation.json").write_text('{"table": [{"name": "model", "velocity_error": "low"}]}')
    with pytest.raises(ValueError, match=r"table\[0\]\.velocity_error: found 'low', expected a number"):
        write_report(bare)


def test_an_error_leaves_the_old_page_and_no_other_file(bare, monkeypatch):
    write_report(bare)
    before = (bare / "report.html").read_bytes()
    (bare / "config.yaml").write_text("seed: 1\n")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(bare)
    assert (bare / "report.html").read_bytes() == before
    assert sorted(path.name for path in bare.iterdir()) == ["config.yaml", "report.html"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (6, r"sampled\.mp4: found 6 frames, expected more than the 6 given ones"),
        (2, r"truth\.mp4: found frames \(5, .*expected \(6, .*as in sampled\.mp4"),
    ],
)
def test_videos_that_do_not_fit_each_other_are_named(tmp_path, given, message):
    for name, frames in (("sampled", 6), ("truth", 5)):
        (tmp_path / f"{name}.mp4").write_bytes(encode(np.zeros((frames, 32, 32, 3), np.uint8), 8))
    clip = Clip("continuation", "a ball", 8.0, given, tmp_path / "sampled.mp4", tmp_path / "truth.mp4")
    with pytest.raises(ValueError, match=message):
        as_example(clip)


def test_the_hero_of_a_task_that_was_not_evaluated_is_an_error(run, tmp_path):
    with pytest.raises(ValueError, match="found no clip of task 'interpolation'"):
        write_hero(run, tmp_path / "hero.png", task="interpolation")


@pytest.mark.parametrize("browser", BROWSERS)
def test_every_video_plays_in_a_browser(browser, page, tmp_path):
    count = page.count("<video ")
    script = f"await until(() => page.document.documentElement.dataset.videos == '{count}/{count}'); say('all');"
    assert seen_by(browser, page.encode(), script, tmp_path) == "all", "not every video reached its first frame"


def test_videos_that_cannot_be_decoded_are_left_out_and_named(tmp_path, capsys):
    root = write_run(tmp_path / "run")
    steps = sorted((root / "samples").glob("step_*"))
    (steps[0] / "clip_0.mp4").write_bytes(b"")
    # A name must not steer the terminal.
    (steps[0] / "\x1b[2J.mp4").write_bytes(b"")
    whole = (steps[1] / "clip_1.mp4").read_bytes()
    (steps[1] / "clip_1.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "secret.mp4").write_bytes(whole)
    (steps[2] / "clip_9.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "evaluation/1_sampled.mp4").write_bytes(b"no <b>video</b>")
    (root / "evaluation/5_sampled.mp4").write_bytes(b"")
    page = write_report(root).read_text()
    said = capsys.readouterr().out
    left_out = [steps[0] / "clip_0.mp4", steps[1] / "clip_1.mp4", steps[2] / "clip_9.mp4",
                root / "evaluation/1_sampled.mp4", root / "evaluation/5_sampled.mp4"]  # fmt: skip
    assert all(f"left out {path}: " in said for path in left_out)
    assert "\\x1b[2J.mp4: " in said
    assert "\x1b" not in said
    assert "6 videos are left out of this page" in page
    # Four continuations with their truth and four clips from captions, less one each; twelve samples less two.
    assert page.count("data:video/mp4;base64,") == 3 * 2 + 3 + 10
    write_hero(root, tmp_path / "hero.png")
    for path in root.glob("**/*.mp4"):
        path.write_bytes(b"")
    page = write_report(root).read_text()
    assert "data:video/mp4;base64," not in page
