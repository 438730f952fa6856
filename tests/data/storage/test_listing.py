"""What a look at a folder takes, what it passes over, and how that is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from videodiff.data.storage import listing
from videodiff.data.storage.listing import SIDECARS, VIDEOS, Fault, Listed, Passed, Scan, ending_of


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def scan(root: Path, endings=VIDEOS, deep: bool = True) -> tuple[list[Listed | Fault], Passed]:
    passed = Passed()
    return list(Scan(root, endings, passed, SIDECARS, deep)), passed


def names(items) -> list[str]:
    return [item.name for item in items]


def test_endings_are_compared_without_case_and_what_is_passed_over_is_counted(tmp_path):
    touch(tmp_path, "b.MP4", "a/c.Ts", "a/d.m2ts", "a.srt", "a/b.srt", "x.TAR", "y.tar.gz", "z.tgz", "README", "Make")
    touch(tmp_path, ".hidden.mp4", ".git/a.mp4", "a/._c.Ts", ".shard-0.tar.0123.partial", ".work/a.mp4", "f.mp4.part")
    touch(tmp_path, "manifest.parquet", "words.txt", "unusable.jsonl")
    items, passed = scan(tmp_path)
    assert names(items) == ["a/c.Ts", "a/d.m2ts", "b.MP4"]
    assert passed == {
        ".srt": 2, "no ending": 2, ".TAR": 1, ".tar.gz": 1, ".tgz": 1, "hidden": 3, "of videodiff": 5, ".part": 1,
    }  # fmt: skip
    line = str(passed)
    assert line.startswith("of videodiff 5, hidden 3, ")
    assert ".TAR 1 (`videodiff index` and prep format=webdataset read tars)" in line
    assert ".tar.gz 1 (unpack it first)" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.mp4", ".mp4"), ("a.b.Mp4", ".Mp4"), ("a", ""), (".mp4", ""), ("Mr. Smith at home", ""),
     ("a.tar.gz", ".tar.gz"), ("a.tar.mp4", ".mp4"), ("a.\x1b[31m", ""), ("new\nline.mp4", ".mp4"), ("a.", "")],
)  # fmt: skip
def test_an_ending_is_what_follows_the_last_dot(name, ending):
    assert ending_of(name) == ending


def test_sidecars_are_found_whatever_the_case_and_the_form_of_accents(tmp_path):
    touch(
        tmp_path, "a.MP4", "a.TXT", "a.json", "e\u0301.mp4", "\u00e9.txt", "lonely.txt", "b.csv", "c.mp4.txt", "c.mp4"
    )
    items, passed = scan(tmp_path)
    found = {item.name: sorted(item.beside) for item in items}
    assert found == {"a.MP4": [".json", ".txt"], "c.mp4": [], "e\u0301.mp4": [".txt"]}
    assert passed == {".txt without a video": 2, ".csv without a video": 1}


def test_a_picture_beside_a_video_of_its_name_is_a_preview(tmp_path):
    touch(tmp_path, "a.mp4", "a.gif", "a.jpg", "b.gif", "sub/a.png")
    items, _ = scan(tmp_path, (*VIDEOS, ".gif", ".jpg", ".png"))
    assert {item.name: item.preview for item in items} == {
        "a.gif": True, "a.jpg": True, "a.mp4": False, "b.gif": False, "sub/a.png": False,
    }  # fmt: skip


def test_linked_folders_are_read_once_and_circles_end(tmp_path):
    root = touch(tmp_path / "in", "own/a.mp4")
    touch(tmp_path / "far", "b.mp4", "deep/c.mp4")
    (root / "first").symlink_to(tmp_path / "far")
    (root / "second").symlink_to(tmp_path / "far")
    (root / "inner").symlink_to(root / "own")
    (root / "self").symlink_to(".")
    (root / "up").symlink_to("..")
    (tmp_path / "far" / "back").symlink_to(root)
    (tmp_path / "far" / "deep" / "round").symlink_to(tmp_path / "far")
    items, passed = scan(root)
    assert names(items) == ["first/b.mp4", "first/deep/c.mp4", "own/a.mp4"]
    assert passed == {"linked folder read already": 6}


def test_a_link_to_what_is_hidden_is_followed(tmp_path):
    touch(tmp_path, ".store/0123/a.mp4", ".store/file")
    (tmp_path / "videos").symlink_to(".store/0123")
    (tmp_path / "b.mp4").symlink_to(".store/file")
    items, passed = scan(tmp_path)
    assert names(items) == ["b.mp4", "videos/a.mp4"]
    assert passed == {"hidden": 1}


def test_what_cannot_be_read_costs_itself(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "empty/.keep", "locked/b.mp4", "z.mp4")
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    (tmp_path / "circle.mp4").symlink_to("circle.mp4")
    (tmp_path / "gone.md").symlink_to("nowhere")
    (tmp_path / "a.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.mp4")
    real = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(listing.os, "scandir", refuse)
    items, passed = scan(tmp_path)
    taken = [item.name for item in items if isinstance(item, Listed)]
    faults = {item.name: item.detail for item in items if isinstance(item, Fault)}
    assert taken == ["a.mp4", "z.mp4"]
    assert faults.keys() == {"locked/", "gone.mp4", "circle.mp4", "pipe.mp4"}
    assert "a link to 'nowhere', which does not exist" in faults["gone.mp4"]
    assert "Permission denied" in faults["locked/"]
    assert "a device, pipe or socket" in faults["pipe.mp4"]
    assert passed == {".md": 1, "hidden": 1, ".txt that cannot be read": 1}


def test_one_folder_alone_counts_those_in_it(tmp_path):
    touch(tmp_path, "a.TAR", "b.tar", "sub/c.tar")
    items, passed = scan(tmp_path, {".tar"}, deep=False)
    assert names(items) == ["a.TAR", "b.tar"]
    assert passed == {"folder": 1}


def test_a_deep_folder_is_read(tmp_path):
    path = tmp_path
    for _ in range(300):
        path = path / "d"
    path.mkdir(parents=True)
    (path / "a.mp4").touch()
    assert len(scan(tmp_path)[0]) == 1
