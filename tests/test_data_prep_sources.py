import json
import os

import pytest

from data_prep.sources import find_clips


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


def test_two_videos_of_one_key_are_an_error_that_names_both(tmp_path):
    folder(tmp_path, a_dot_mp4="", a_dot_mkv="")
    with pytest.raises(ValueError, match=r"found 'a\.mkv' and 'a\.mp4', both of key 'a'"):
        find_clips(tmp_path)


def test_a_link_out_of_the_folder_is_rejected(tmp_path):
    folder(tmp_path, outside_dot_mp4="secret", inside__a_dot_mp4="")
    os.symlink(tmp_path / "outside.mp4", tmp_path / "inside" / "link.mp4")
    found = find_clips(tmp_path / "inside")
    assert [(r.name, r.reason) for r in found.rejected] == [("link.mp4", "path leaves the folder")]
    assert [clip.name for clip in found.clips] == ["a.mp4"]


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


@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/passwd", "sub/../../x.mp4", ""])
def test_a_path_that_leaves_the_folder_is_rejected(tmp_path, name):
    rows = [{"video": name, "caption": "x"}, {"video": "a.mp4", "caption": "y"}]
    path = table(tmp_path, "list.jsonl", "\n".join(map(json.dumps, rows)))
    found = find_clips(path)
    assert captions(found) == {"a.mp4": ("y",)}
    assert [r.reason for r in found.rejected] == ["path leaves the folder"]


def test_a_table_without_the_columns_is_an_error_that_lists_what_it_has(tmp_path):
    path = table(tmp_path, "list.csv", "url,words\na,b\n")
    with pytest.raises(ValueError, match=r"list\.csv:2: found columns url, words, expected video or image or path"):
        find_clips(path)


@pytest.mark.parametrize("line", ["{", "[1, 2]"])
def test_a_line_that_is_no_record_is_an_error_that_names_it(tmp_path, line):
    path = table(tmp_path, "list.jsonl", '{"video": "a.mp4", "caption": "x"}\n' + line)
    with pytest.raises(ValueError, match=r"list\.jsonl:2: found"):
        find_clips(path)


def test_a_missing_source_or_table_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_clips(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        find_clips(tmp_path, captions=tmp_path / "none.csv")


def test_a_folder_without_videos_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="found no clip"):
        find_clips(tmp_path)


def test_two_tables_are_an_error(tmp_path):
    path = table(tmp_path, "list.csv", "video,caption\na.mp4,b\n")
    with pytest.raises(ValueError, match="expected a folder"):
        find_clips(path, captions=path)
