import json

import pytest

from videodiff.report.run import facts, read_clips, read_metrics, read_run


def metrics(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode())
    return read_metrics(path)


def clip(**changes):
    entry = {"task": "continuation", "caption": "a ball", "fps": 8, "given_frames": 3, "sampled": "x.mp4"}
    return entry | {"truth": None} | changes


def clips(root, *entries):
    (root / "evaluation").mkdir()
    (root / "x.mp4").write_bytes(b"video")
    (root / "evaluation" / "clips.json").write_text(json.dumps(list(entries)))
    return read_clips(root.resolve())


def test_empty_cells_are_left_out_of_their_column(tmp_path):
    found = metrics(tmp_path, "epoch,step,train/loss,val/loss\r\n0,1,0.5,\r\n0,1,,0.7\r\n0,2,0.25,\r\n")
    assert {name: (x.tolist(), y.tolist()) for name, (x, y) in found.items()} == {
        "train/loss": ([1, 2], [0.5, 0.25]),
        "val/loss": ([1], [0.7]),
    }


def test_a_header_that_comes_again_names_the_columns_from_there_on(tmp_path):
    found = metrics(tmp_path, "step,a\n1,10\nb,step,a\n7,2,20\n")
    assert found["a"][1].tolist() == [10, 20]
    assert found["b"][0].tolist() == [2]


def test_a_step_that_was_run_again_counts_once_with_its_later_value(tmp_path):
    steps, values = metrics(tmp_path, "step,a\n1,10\n2,20\n3,30\n2,21\n")["a"]
    assert (steps.tolist(), values.tolist()) == ([1, 2, 3], [10, 21, 30])


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    assert metrics(tmp_path, "step,a,b\n1,10,5\n2,2")["a"][0].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,a\n1,10\n2,ten\n", r"metrics\.csv: line 3, column a: found 'ten', expected a number"),
        ("step,a\n1,10,11\n", r"line 2: found 3 cells, expected 2"),
        ("step,a\n,10\n", r"line 2, column step: found nothing"),
        ("epoch,a\n1,10\n", r"line 1: found 'epoch,a', expected a header of distinct columns, one of them step"),
    ],
)
def test_a_malformed_table_names_line_and_column(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        metrics(tmp_path, text)


def test_a_clip_is_read_with_its_paths_inside_the_run(tmp_path):
    (found,) = clips(tmp_path, clip())
    assert (found.given, found.sampled, found.truth) == (3, tmp_path.resolve() / "x.mp4", None)


@pytest.mark.parametrize("path", ["../secret.mp4", "/etc/hostname", "evaluation/link.mp4"])
def test_a_video_outside_of_the_run_folder_is_refused(tmp_path, path):
    root = tmp_path / "run"
    root.mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (root / "evaluation").mkdir()
    (root / "evaluation" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "evaluation" / "clips.json").write_text(json.dumps([clip(sampled=path)]))
    with pytest.raises(ValueError, match=r"entry 0\.sampled: found .*expected a path inside the run folder"):
        read_clips(root.resolve())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": None}, r"entry 1\.caption: found None, expected text"),
        ({"given_frames": -1}, r"entry 1\.given_frames: found -1"),
        ({"fps": 0}, r"entry 1\.fps: found 0"),
        ({"sampled": "y.mp4"}, r"entry 1\.sampled: found no file 'y\.mp4'"),
    ],
)
def test_a_malformed_clip_names_entry_and_key(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        clips(tmp_path, clip(), clip(**changes))


def test_samples_are_found_by_step_in_the_order_of_steps(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    for step in ("step_1000", "step_30", "step_00000200", "step_9", "step_last"):
        (tmp_path / "samples" / step).mkdir(parents=True)
        (tmp_path / "samples" / step / "clip_0.mp4").write_bytes(b"")
    assert list(read_run(tmp_path).samples) == [9, 30, 200, 1000]


def test_date_commit_and_hardware_are_told_as_recorded(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    git = {"commit": "0123456789abcdef", "changed": [" M a.py", "?? b.py"]}
    machine = {"processor": "EPYC", "cores": 16, "gpus": ["H200", "H200"]}
    recorded = {"date": "2026-11-20T19:05:11+00:00", "git": git, "machine": machine}
    (tmp_path / "environment.json").write_text(json.dumps(recorded))
    assert dict(facts(read_run(tmp_path))) == {
        "Date": "2026-11-20 19:05:11 UTC",
        "Commit": "0123456789ab and 2 changed files",
        "Hardware": "2 × H200, EPYC, 16 cores",
    }


def test_what_was_not_recorded_is_said(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "environment.json").write_text(json.dumps({"git": None}))
    told = dict(facts(read_run(tmp_path)))
    assert (told["Commit"], told["Hardware"]) == ("not recorded", "not recorded")
