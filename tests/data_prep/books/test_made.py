"""Records of what was made: whole after a round trip, and read as earlier versions wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.books import clip_index
from data_prep.books.clip_index import ClipIndex
from data_prep.books.ledger import Ledger, Outcome
from data_prep.books.made import Made, MadeClip, Sound
from data_prep.books.plan import Plan
from data_prep.books.request import ClipRequest, Place
from data_prep.books.work_folder import clip_file
from videodiff.data.video.info import VideoInfo

ID = "0d0c1a5e-0000-5000-8000-00000000000%d"
INFO = VideoInfo(48, 32, 12, 8.0, 1.5)


def clip(number: int, **how) -> MadeClip:
    known = {"info": INFO, "times": [0, 125_000], "box": (0, 0, 64, 96), "codec": "libx264", "scores": {"motion": 0.1}}
    return MadeClip(ID % number, (0.25 * number, 1.75), sha256="ab" * 32, **{**known, **how})


def test_a_record_survives_its_file(tmp_path):
    spoken = {"audio": Sound("cd" * 32, 7), "color": {"transfer": "pq"}, "perceptual": bytes(range(32))}
    clips = clip(1, **spoken), clip(2, audio=Sound(lost="no sound"), deinterlaced=True, bytes=9), clip(3)
    made = Made(clips, ("damaged",), "ef" * 32, {"crop": True, "encode": {"crf": 18}})
    made.write(tmp_path, ID % 9)
    assert Made.read(tmp_path, ID % 9) == made


# As the first version wrote it, before colours, fields and sound were noted.
EARLIER = {
    "clips": [
        {
            "id": ID % 1,
            "span": [0.25, 1.75],
            "info": {"width": 48, "height": 32, "frames": 12, "fps": 8.0, "duration": 1.5},
            "times": [0, 125000],
            "box": [0, 0, 64, 96],
            "codec": "libx264",
            "scores": {"motion": 0.1},
            "perceptual": "",
            "sha256": "ab" * 32,
            "bytes": 0,
        }
    ],
    "lost": [],
    "video_sha256": "ef" * 32,
    "parameters": {"crop": True},
}


def store(work: Path, id: str, fields: dict) -> None:
    path = clip_file(work, id, "json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(fields))


def test_a_record_of_an_earlier_version_is_read_and_one_of_a_later_refused(tmp_path):
    store(tmp_path / "old", ID % 9, EARLIER)
    assert Made.read(tmp_path / "old", ID % 9) == Made((clip(1),), (), "ef" * 32, {"crop": True})
    store(tmp_path / "new", ID % 9, {**EARLIER, "version": 2})
    with pytest.raises(ValueError, match=r"found version 2, expected at most 1: use a newer videodiff"):
        Made.read(tmp_path / "new", ID % 9)


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_the_file_of_a_request_is_read_once_in_the_life_of_a_work_folder(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(clip_index, "BATCH", batch)
    requests = [ClipRequest(Place("list.csv", number), f"{number}.mp4") for number in (1, 2, 3)]
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for request in requests[:2]:
        Made((clip(1), clip(2)), ("damaged",), "ef" * 32, {}).write(tmp_path, request.id)
    read, reader = [], Made.read
    monkeypatch.setattr(Made, "read", lambda work, id: read.append(id) or reader(work, id))
    for done in (1, 2):
        plan = Plan(tmp_path / "plan.sqlite", tmp_path / "ledger.sqlite")
        plan.add(ledger.admit(requests))
        ledger.record([Outcome(request.id, "ok") for request in requests[:done]])
        index = ClipIndex(plan, tmp_path)
        for _ in range(2):
            found = list(index)
            assert [(one.request, one.id) for one in found] == [
                (request, ID % number) for request in requests[:done] for number in (1, 2)
            ]
            first = found[0]
            assert (first.span, first.frames, first.lost) == ((0.25, 1.75), 12, 1)
            assert (first.sha256.hex(), first.perceptual, first.scores) == ("ab" * 32, b"", {"motion": 0.1})
        plan.close()
    assert read == [request.id for request in requests[:2]]
