"""Captions are read in the same way wherever they lie: beside a video, in a tar, in a shard."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources import find_clips
from data_prep.sources.folder import read_folder
from data_prep.sources.metadata.captions import CaptionIndex
from data_prep.sources.table import read_table
from data_prep.sources.webdataset import read_webdataset
from tests.material.made_clips import sample
from videodiff.data.samples.indexing import index_tars
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import read_sample
from videodiff.data.samples.sidecars import SidecarError, Text, read_captions, read_texts

MP4 = sample(0)[0]["mp4"]
CASES = {
    "txt": ({"txt": b"a red ball"}, ["a red ball"]),
    "mark": ({"txt": b"\xef\xbb\xbfa red ball"}, ["a red ball"]),
    "utf16": ({"txt": "ein Würfel".encode("utf-16")}, ["ein Würfel"]),
    "utf16be": ({"txt": b"\xfe\xff" + "Würfel".encode("utf-16-be")}, ["Würfel"]),
    "crlf": ({"txt": b"one\r\ntwo\r\n"}, ["one two"]),
    "cr": ({"txt": b"one\rtwo\r"}, ["one two"]),
    "caption": ({"json": b'{"caption": "by caption"}'}, ["by caption"]),
    "text": ({"json": b'{"text": "by text"}'}, ["by text"]),
    "captions": ({"json": b'{"captions": "one string"}'}, ["one string"]),
    "list": ({"json": b'{"captions": ["l1", "l2", "l1", " "]}'}, ["l1", "l2"]),
    "list in caption": ({"json": b'{"caption": ["first", "second"]}'}, ["first", "second"]),
    "records": ({"json": b'{"captions": [{"caption": "a", "origin": "qwen"}, {"text": "b"}, "c"]}'}, ["a", "b", "c"]),
    "all fields": ({"json": b'{"text": "c", "captions": ["b"], "caption": "a"}'}, ["a", "b", "c"]),
    "marked json": ({"json": b"\xef\xbb\xbf" + b'{"caption": "a"}'}, ["a"]),
    "json in utf16": ({"json": json.dumps({"caption": "a"}).encode("utf-16")}, ["a"]),
    "blank txt": ({"txt": b" \r\n", "json": b'{"caption": "from json"}'}, ["from json"]),
    "empty txt": ({"txt": b"", "json": b'{"caption": "from json"}'}, ["from json"]),
    "txt and json": ({"txt": b"plain", "json": b'{"captions": ["other", "plain"]}'}, ["plain", "other"]),
    "csv": ({"csv": b"caption,origin\r\na,x\r\n\"b, c\",y\r\n"}, ["a", "b, c"]),
    "csv with semicolons": ({"csv": b"frame;caption\n1;a, b\n2;c\n3\n"}, ["a, b", "c"]),
    "csv with cr": ({"csv": b"\xef\xbb\xbfText\ra\rb\r"}, ["a", "b"]),
    "csv of something else": ({"csv": b"frame,x,y\n0,1,2\n"}, []),
    "controls": ({"txt": b"a\x1b[31m red\x07 ball"}, ["a [31m red ball"]),
    "by name": ({"json": b'{"captions": {"short": "a", "long": "a b", "none": null}}'}, ["a", "a b"]),
    "lists by name": ({"json": b'{"caption": {"short": ["a", "b"], "long": {"text": "c"}}}'}, ["a", "b", "c"]),
    "lists of names": ({"json": b'{"text": [{"short": "a", "origin": "qwen"}, "b"]}'}, ["a", "b"]),
    "by no name": ({"json": b'{"captions": {"short": " "}, "text": []}'}, []),
    "null": ({"json": b'{"caption": null, "captions": [null], "prompt": "no caption"}'}, []),
    "none": ({}, []),
}  # fmt: skip
BAD = {
    "latin": ({"txt": b"caf\xe9"}, "txt: found a byte 0xe9 that is not UTF-8, expected UTF-8 or UTF-16 with its mark"),
    "half utf16": ({"txt": b"\xff\xfe\x80"}, "not UTF-16"),
    "utf16 without mark": ({"txt": "a red".encode("utf-16-le")}, "txt: found NUL characters"),
    "number": ({"json": b'{"caption": 5}'}, "json: caption: found 5, expected text"),
    "record": ({"json": b'{"captions": [{"box": [1]}]}'}, "json: captions: box: found 1, expected text"),
    "names in names": ({"json": b'{"captions": {"short": {"en": "a"}}}'}, "json: captions: short: found"),
    "list of lists": ({"json": b'{"text": [["a"]]}'}, "json: text: found"),
    "half a pair": ({"json": b'{"caption": "\\ud83d"}'}, "expected Unicode text"),
    "no json": ({"json": b"{"}, "json: found no JSON"),
    "deep": ({"json": b"[" * 100_000}, "json: found no JSON"),
    "array": ({"json": b"[1]"}, "json: found list, expected an object"),
    "large": ({"txt": bytes(2**22 + 1)}, "txt: found 4194305 bytes, expected at most 4194304"),
    "csv": ({"csv": b"text\na\0b\n"}, "csv: found NUL"),
}


@pytest.mark.parametrize("case", CASES)
def test_captions_are_read_from_what_lies_beside(case):
    members, expected = CASES[case]
    assert read_captions(members) == expected


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named(case):
    members, message = BAD[case]
    with pytest.raises(SidecarError) as caught:
        read_texts(members)
    assert message in str(caught.value)


def test_origins_are_those_of_each_caption_or_of_all():
    notes = {"captions": [{"text": "a", "origin": "qwen"}, "b"]}
    assert read_texts({"json": json.dumps(notes).encode()}) == [Text("a", "qwen"), Text("b")]
    notes = {"captions": ["a", "a", "b"], "caption_origins": ["sidecar", "qwen", "qwen"]}
    members = {"txt": b"a", "json": json.dumps(notes).encode()}
    assert read_texts(members) == [Text("a", "sidecar"), Text("a", "qwen"), Text("b", "qwen")]
    assert read_texts({"txt": b"a", "json": b'{"caption_origins": ["web"]}'}) == [Text("a", "web")]


def test_an_origin_beside_names_is_that_of_each():
    notes = {"captions": {"short": "a", "long": {"text": "b", "origin": "llama"}, "origin": "qwen"}}
    assert read_texts({"json": json.dumps(notes).encode()}) == [Text("a", "qwen"), Text("b", "llama")]


def several(path: Path, kind: pa.DataType | None = None) -> None:
    """Write a table of one clip that has its captions by name."""
    row = {"video": "a.mp4", "caption": {"short": "a cube", "long": "a cube falls"}}
    if path.suffix == ".jsonl":
        path.write_text(json.dumps(row))
    else:
        cells = pa.array([[*row["caption"].items()] if kind else row["caption"]], kind)
        pq.write_table(pa.table({"video": ["a.mp4"], "caption": cells}), path)


@pytest.mark.parametrize("kind", ["jsonl", "struct", "map"])
def test_captions_by_name_are_several_in_every_table(kind, tmp_path):
    table = tmp_path / ("list.jsonl" if kind == "jsonl" else "list.parquet")
    several(table, pa.map_(pa.string(), pa.string()) if kind == "map" else None)
    (item,) = read_table(table, {"video": "video", "caption": "caption"})
    assert [(caption.text, caption.origin) for caption in item.captions] == [
        ("a cube", "table"),
        ("a cube falls", "table"),
    ]
    (clip,) = find_clips(table).clips
    assert clip.captions == ("a cube", "a cube falls")


def test_captions_by_name_are_several_where_they_lie_apart(tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"clip_id": "a", "text": {"short": "a cube", "long": "a cube falls"}}')
    index = CaptionIndex(tmp_path / "captions.jsonl", tmp_path / "index", "qwen")
    assert [caption.text for caption in index.find("a")] == ["a cube", "a cube falls"]
    assert index.bad == []


def test_every_reader_finds_the_same_captions(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "tars").mkdir()
    keys = {case.replace(" ", "_"): case for case in CASES | {f"bad {case}": None for case in BAD}}
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for key, case in keys.items():
            members, _ = BAD[case.removeprefix("bad ")] if case.startswith("bad ") else CASES[case]
            for extension, data in {"mp4": MP4, **members}.items():
                (tmp_path / "in" / f"{key}.{extension}").write_bytes(data)
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    expected = {key: CASES[case][1] for key, case in keys.items() if case in CASES}
    found = find_clips(tmp_path / "in")
    assert {clip.key: list(clip.captions) for clip in found.clips} == expected
    assert len(found.rejected) == len(BAD)
    manifest, unusable = index_tars(str(tmp_path / "tars"), workers=1)
    rows = list(map(manifest.row, range(len(manifest))))
    trained = {row["key"]: read_captions(read_sample(tmp_path / "tars", row)) for row in rows}
    # A txt that is too large for a sidecar is left out before its sample is known.
    assert {key: trained[key] for key in expected} == expected
    assert {row["key"]: row["captions"] for row in rows} == {key: len(texts) for key, texts in trained.items()}
    assert {entry.name.partition(".")[0] for entry in unusable} == {key for key in keys if key.startswith("bad_")}
    prepared = [*read_folder(tmp_path / "in"), *read_webdataset(tmp_path / "tars")]
    for item in prepared:
        if hasattr(item, "captions"):
            key = (item.name or item.source).removesuffix(".mp4")
            assert [caption.text for caption in item.captions] == expected.get(key, []), key


def test_a_dataset_packed_from_captions_is_trained_on_with_them(tmp_path):
    """The text of shards that the project writes is read back as it was given, in its order."""
    from videodiff.data.samples.shards import ShardWriter

    with ShardWriter(tmp_path) as writer:
        for number, captions in enumerate([("b", "a"), ("one",), ()]):
            writer.add(f"{number}", *sample(number, captions=captions))
        assert writer.without_caption == 1
    manifest = Manifest.load(tmp_path)
    found = [read_captions(read_sample(tmp_path, manifest.row(number))) for number in range(3)]
    assert found == [["b", "a"], ["one"], []]
