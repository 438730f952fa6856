"""Curate: the table of all clips, the bucket of a clip, and how inputs are counted in the end."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.books.candidate import Candidate
from data_prep.books.ledger import Ends
from data_prep.books.request import ClipRequest, Place
from data_prep.choose.curate import bucket_of, kept_ends, scores_table
from videodiff.data.order.buckets import Bucket
from videodiff.data.video.info import VideoInfo


def clip(number: int) -> Candidate:
    request = ClipRequest(Place("list.csv", number), f"{number}.mp4")
    scores = {"motion": number / 4, "aesthetic": None}
    return Candidate(request, f"clip{number}", (number, number + 0.5), 8, bytes([number]) * 32, b"\x05", 0, scores, ())


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_every_clip_has_a_row_in_its_order_however_many_are_written_at_once(tmp_path: Path, batch: int) -> None:
    with scores_table(tmp_path / "scores.parquet", batch) as add:
        for number in range(5):
            add(clip(number), "duplicate" if number == 3 else "")
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"clip{number}" for number in range(5)]
    assert rows[3] == {
        "id": "clip3",
        "input": clip(3).request.id,
        "source": "3.mp4",
        "start": 3.0,
        "end": 3.5,
        "reason": "duplicate",
        "sha256": "03" * 32,
        "hash": "05",
        "score_aesthetic": None,
        "score_motion": 0.75,
    }
    with scores_table(tmp_path / "scores.parquet") as add:
        pass
    assert pq.read_table(tmp_path / "scores.parquet").num_rows == 0


def test_a_table_that_was_not_finished_replaces_none(tmp_path: Path) -> None:
    (path := tmp_path / "scores.parquet").write_bytes(b"the old one")
    # A clip that is no clip ends the work after one that was written.
    with pytest.raises(AttributeError), scores_table(path, 1) as add:
        list(map(add, [clip(0), None], ["", ""]))
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("scores.parquet", b"the old one")]


@pytest.mark.parametrize(
    ("frames", "size", "name"),
    [(16, (64, 64), "16x32x32"), (15, (64, 64), "8x32x32"), (7, (64, 64), "none"), (16, (64, 16), "none")],
)
def test_a_clip_goes_into_the_first_bucket_that_it_fits(frames: int, size: tuple[int, int], name: str) -> None:
    info = VideoInfo(size[1], size[0], frames, 8.0, frames / 8)
    assert bucket_of(info, [Bucket(16, 32, 32), Bucket(8, 32, 32)]) == name
    assert bucket_of(info, []) == ""


def test_inputs_that_the_rules_leave_out_are_no_longer_ok() -> None:
    failed = {"missing": {"permanent": 2}}
    found = kept_ends(Ends(11, 6, {"takedown": 1, "no scene": 1}, failed, 1), {"": 3, "duplicate": 1, "takedown": 2})
    assert found == Ends(11, 3, {"duplicate": 1, "no scene": 1, "takedown": 3}, failed, 1)
    assert list(found.filtered) == ["duplicate", "no scene", "takedown"]
