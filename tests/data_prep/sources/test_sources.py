import gzip
import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources import find_clips
from data_prep.sources.clips import name_record
from videodiff.data.storage.address import printable


def folder(root, **files):
    """Make files; `__` in a name stands for a slash, `_dot_` for a dot."""
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def table(root, name, text):
    (root / name).write_text(text)
    return root / name


def captions(found):
    return {clip.name: clip.captions for clip in found.clips}


def test_a_folder_is_listed_in_the_order_of_names_with_the_captions_beside(tmp_path):
    folder(
        tmp_path, b_dot_mp4="", b_dot_txt=" a red\n ball ", sub__a_dot_MKV="", sub__a_dot_txt="blue", note_dot_md="no"
    )
    found = find_clips(tmp_path)
    assert [clip.name for clip in found.clips] == ["b.mp4", "sub/a.MKV"]
    assert captions(found) == {"b.mp4": ("a red ball",), "sub/a.MKV": ("blue",)}


def test_a_json_may_hold_captions_provenance_and_truth(tmp_path):
    notes = {"captions": ["one", "two", "one", ""], "source": "film", "license": "CC0", "truth": {"radius": [1]}}
    folder(tmp_path, a_dot_mp4="", a_dot_txt="zero", a_dot_json=json.dumps(notes))
    (clip,) = find_clips(tmp_path).clips
    assert clip.captions == ("zero", "one", "two")
    assert (clip.source, clip.licence, clip.truth) == ("film", "CC0", {"radius": [1]})


@pytest.mark.parametrize("content", ["{", "[1]", '{"caption": 5}'])
def test_a_sidecar_that_cannot_be_read_rejects_its_clip_alone(tmp_path, content):
    folder(tmp_path, a_dot_mp4="", a_dot_json=content, b_dot_mp4="", b_dot_txt="fine")
    found = find_clips(tmp_path)
    assert captions(found) == {"b.mp4": ("fine",)}
    assert [(r.name, r.reason) for r in found.rejected] == [("a.mp4", "caption unreadable")]


def test_a_caption_that_is_no_text_rejects_its_clip(tmp_path):
    folder(tmp_path, a_dot_mp4="")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x80")
    assert [r.reason for r in find_clips(tmp_path).rejected] == ["caption unreadable"]


def test_keys_have_no_dots_and_no_slashes(tmp_path):
    folder(tmp_path, one__two_dot_three_dot_mp4="")
    (clip,) = find_clips(tmp_path).clips
    assert clip.key == "one__two_three"


def test_keys_that_meet_are_told_apart_by_their_names(tmp_path):
    names = ("a.mkv", "a.mp4", "b.c.mp4", "b_c.mp4", "Ball.mp4", "ball.mp4", "d/e.mp4", "d__e.mp4", "alone.mp4")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_clips(tmp_path)
    assert found.rejected == []
    keys = {clip.name: clip.key for clip in found.clips}
    assert keys.keys() == set(names)
    assert len({key.casefold() for key in keys.values()}) == len(names)
    assert keys["alone.mp4"] == "alone"
    digits = hashlib.sha256(b"a.mkv").hexdigest()[:8]
    assert keys["a.mkv"] == f"a-{digits}"
    assert all(re.fullmatch(r".+-[0-9a-f]{8}", key) for name, key in keys.items() if name != "alone.mp4")


@pytest.mark.parametrize(
    "name",
    [b"caf\xe9", b" blank", b"blank ", b"back\\slash", b"new\nline", b"escape\x1b[31m", b"n" * 240, "ö".encode() * 110,
     "e\u0301".encode(), b"tab\t", "\u2028".encode()],
)  # fmt: skip
def test_a_name_that_is_no_safe_key_gets_one(tmp_path, name):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/" + name + b".mp4"))
    path.touch()
    (tmp_path / "plain.mp4").touch()
    keys = {clip.name: clip.key for clip in find_clips(tmp_path).clips}
    assert keys.pop("plain.mp4") == "plain"
    ((kept, key),) = keys.items()
    assert key.endswith("-" + hashlib.sha256(name + b".mp4").hexdigest()[:8])
    assert key.isprintable()
    assert key == key.strip() == unicodedata.normalize("NFC", key)
    assert len(key.encode()) <= 200
    record = name_record(kept)
    whole = bytes.fromhex(record["name_bytes"]) if "name_bytes" in record else record["name"].encode()
    assert whole == name + b".mp4"
    assert json.loads(json.dumps(record)) == record
    assert printable(kept).isprintable()


def test_a_name_that_looks_like_the_key_of_another_is_told_apart(tmp_path):
    digits = hashlib.sha256(b"a.mkv").hexdigest()[:8]
    for name in ("a.mkv", "a.mp4", f"a-{digits}.mp4"):
        (tmp_path / name).touch()
    clips = find_clips(tmp_path).clips
    assert len({clip.key for clip in clips}) == len(clips) == 3


def test_links_in_the_folder_itself_are_followed(tmp_path):
    blobs = folder(tmp_path / "blobs", video="", text="a red ball")
    snapshot = folder(tmp_path / "snapshots" / "abc", note_dot_md="")
    (snapshot / "a.mp4").symlink_to("../../blobs/video")
    (snapshot / "a.txt").symlink_to("../../blobs/text")
    found = find_clips(snapshot)
    assert captions(found) == {"a.mp4": ("a red ball",)}
    assert found.clips[0].path.resolve() == blobs / "video"
    assert found.passed == {".md": 1}


def test_the_secrets_of_a_source_do_not_get_into_the_shards(tmp_path):
    folder(tmp_path, a_dot_mp4="", a_dot_txt="a red ball")
    (tmp_path / "a.json").write_text(json.dumps({"source": "https://me:word@host/a.mp4?v=1&sig=abc"}))
    assert find_clips(tmp_path).clips[0].source == "https://host/a.mp4?v=1"


def test_a_compressed_table_is_read_like_the_plain_one(tmp_path):
    folder(tmp_path, a_dot_mp4="")
    (tmp_path / "list.csv.gz").write_bytes(gzip.compress(b"video,caption\na.mp4,a red ball\n"))
    assert captions(find_clips(tmp_path / "list.csv.gz")) == {"a.mp4": ("a red ball",)}


def test_a_link_that_a_table_names_is_refused_and_named(tmp_path):
    root = folder(tmp_path / "in", a_dot_mp4="")
    folder(tmp_path, secret__b_dot_mp4="")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "home").symlink_to(".")
    path = table(root, "list.csv", "video,caption\nout/b.mp4,x\nhome/a.mp4,y\n")
    found = find_clips(path)
    assert captions(found) == {"home/a.mp4": ("y",)}
    (one,) = found.rejected
    assert (one.name, one.reason) == ("out/b.mp4", "path leaves the folder")
    assert f"by the link 'out' to '{tmp_path}/secret'" in one.detail


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_names_videos_captions_and_provenance(tmp_path, kind):
    rows = [("a.mp4", "a red, round ball", "film"), ("sub/b.mp4", "ein blauer Würfel", "")]
    if kind == "csv":
        text = "video,caption,source,span\n" + "".join(f'{v},"{c}",{s},0-1\n' for v, c, s in rows)
    else:
        text = "".join(json.dumps({"path": v, "text": c, "source": s, "span": [0, 1]}) + "\n\n" for v, c, s in rows)
    found = find_clips(table(tmp_path, f"list.{kind}", text))
    assert captions(found) == {"a.mp4": ("a red, round ball",), "sub/b.mp4": ("ein blauer Würfel",)}
    assert [clip.source for clip in found.clips] == ["film", ""]
    assert [clip.path for clip in found.clips] == [tmp_path / "a.mp4", tmp_path / "sub" / "b.mp4"]
    assert found.ignored == ["span"]


def test_lines_of_one_video_are_captions_of_one_clip(tmp_path):
    path = table(tmp_path, "list.csv", "video,caption\na.mp4,one\nb.mp4,two\n./a.mp4,three\na.mp4,one\n")
    assert captions(find_clips(path)) == {"a.mp4": ("one", "three"), "b.mp4": ("two",)}


def test_columns_may_be_named(tmp_path):
    path = table(tmp_path, "list.csv", "video,name,caption\nno.mp4,a.mp4,good\n")
    assert captions(find_clips(path, video_column="name")) == {"a.mp4": ("good",)}
    assert captions(find_clips(path, caption_column="name")) == {"no.mp4": ("a.mp4",)}


def test_a_folder_and_a_table_elsewhere_go_together(tmp_path):
    folder(tmp_path / "videos", a_dot_mp4="", b_dot_mp4="")
    path = table(tmp_path, "list.jsonl", '{"video": "a.mp4", "caption": "one"}\n')
    found = find_clips(tmp_path / "videos", captions=path)
    assert [clip.path for clip in found.clips] == [tmp_path / "videos" / "a.mp4"]
    assert found.passed == {"video or picture without a line in the table": 1}


@pytest.mark.parametrize("name", ["list.jsonl", "a.csv"])
def test_a_table_in_its_own_folder_is_not_passed_over(tmp_path, name):
    videos = folder(tmp_path / "videos", a_dot_mp4="", other_dot_jsonl="")
    text = '{"video": "a.mp4", "caption": "one"}\n' if name == "list.jsonl" else "video,caption\na.mp4,one\n"
    found = find_clips(videos, captions=table(videos, name, text))
    assert captions(found) == {"a.mp4": ("one",)}
    assert found.passed == {".jsonl": 1}


def test_a_table_of_another_ending_is_read_as_json_lines_or_refused_with_the_known_endings(tmp_path):
    path = table(tmp_path, "list.json", '{"video": "a.mp4", "caption": "one"}\n')
    assert captions(find_clips(path)) == {"a.mp4": ("one",)}
    with pytest.raises(ValueError, match=r"list\.txt: found no line of JSON .*: \.csv, \.tsv, \.jsonl, \.parquet"):
        find_clips(table(tmp_path, "list.txt", "video\tcaption\na.mp4\tone\n"))
    # What a line lacks is said first.
    with pytest.raises(ValueError, match=r"list\.json:1: found columns video, words"):
        find_clips(table(tmp_path, "list.json", '{"video": "a.mp4", "words": "one"}\n'))


@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/passwd", "sub/../../x.mp4", ""])
def test_a_path_that_leaves_the_folder_is_rejected(tmp_path, name):
    rows = [{"video": name, "caption": "x"}, {"video": "a.mp4", "caption": "y"}]
    path = table(tmp_path, "list.jsonl", "\n".join(map(json.dumps, rows)))
    found = find_clips(path)
    assert captions(found) == {"a.mp4": ("y",)}
    assert [r.reason for r in found.rejected] == ["path leaves the folder"]


def test_a_table_without_the_columns_is_an_error_that_lists_what_it_has(tmp_path):
    path = table(tmp_path, "list.csv", "url,words\na,b\n")
    with pytest.raises(ValueError, match=r"list\.csv:2: found columns url, words, expected one of video, image, path,"):
        find_clips(path)


@pytest.mark.parametrize(
    "line", ["{", "[1, 2]", '{"caption": "x"}', '{"video": "c.mp4", "caption": 5}', '{"video": null, "caption": "x"}']
)
def test_a_line_that_names_no_clip_costs_itself(tmp_path, line):
    good = '{"video": "%s.mp4", "caption": "x"}'
    path = table(tmp_path, "list.jsonl", "\n".join([good % "a", line, good % "b"]))
    found = find_clips(path)
    assert list(captions(found)) == ["a.mp4", "b.mp4"]
    assert [r.name for r in found.rejected] == ["list.jsonl:2"]


def test_a_table_may_be_a_parquet_and_captions_have_origins(tmp_path):
    rows = [{"file_name": "a.mp4", "text": ["one", "two"]}, {"file_name": "b.mp4", "text": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    assert captions(find_clips(tmp_path / "metadata.parquet")) == {"a.mp4": ("one", "two"), "b.mp4": ()}
    path = table(tmp_path, "list.jsonl", '{"video": "a.mp4", "caption": [{"text": "one", "origin": "qwen"}, "two"]}\n')
    (clip,) = find_clips(path).clips
    assert [(text.text, text.origin) for text in clip.texts] == [("one", "qwen"), ("two", "")]


@pytest.mark.parametrize("name", ["a\0.mp4", "n" * 300 + ".mp4", "loop/a.mp4"])
def test_a_path_in_a_table_that_no_disk_can_hold_costs_itself(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    rows = [{"video": name, "caption": "x"}, {"video": "a.mp4", "caption": "y"}]
    found = find_clips(table(tmp_path, "list.jsonl", "\n".join(map(json.dumps, rows))))
    names = {clip.name for clip in found.clips} | {one.name for one in found.rejected}
    assert {"a.mp4", name} == names


def test_a_missing_source_or_table_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_clips(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        find_clips(tmp_path, captions=tmp_path / "none.csv")


def test_a_folder_without_videos_is_an_error_that_tells_what_is_there(tmp_path):
    with pytest.raises(ValueError, match="found no clip"):
        find_clips(tmp_path)
    folder(tmp_path, a_dot_tar="", b_dot_srt="")
    with pytest.raises(ValueError, match=r"there are \.tar 1 \(`videodiff index` .* read tars\), \.srt 1"):
        find_clips(tmp_path)


def test_a_video_is_no_table(tmp_path):
    folder(tmp_path, a_dot_mp4="")
    with pytest.raises(ValueError, match=r"found the video .*expected the folder that it is in"):
        find_clips(tmp_path / "a.mp4")


def test_two_tables_are_an_error(tmp_path):
    path = table(tmp_path, "list.csv", "video,caption\na.mp4,b\n")
    with pytest.raises(ValueError, match="expected a folder"):
        find_clips(path, captions=path)
