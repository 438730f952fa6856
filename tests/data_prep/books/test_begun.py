"""A work folder goes on with the settings that it was begun with, and with no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.books.begun import check_settings
from data_prep.cut.policy import MakePolicy


def begin(path: Path, **settings: object) -> None:
    check_settings(path, {"source": "list.jsonl", **MakePolicy(**settings).to_json()}, MakePolicy().to_json())


@pytest.mark.parametrize("scores", [("motion",), ("motion", "text", "overlay", "quality")])
def test_a_work_folder_goes_on_with_its_own_scores_only(tmp_path: Path, scores: tuple[str, ...]) -> None:
    path = tmp_path / "settings.json"
    for _ in range(2):
        begin(path, scores=scores)
    for others in {("motion",), ("quality",), MakePolicy().scores} - {scores}:
        with pytest.raises(ValueError, match=r"scores: found \[.*\], expected \['motion'"):
            begin(path, scores=others)


def test_a_work_folder_of_an_older_version_has_the_usual_settings_where_it_names_none(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    begin(path)
    fields = json.loads(path.read_text())
    del fields["scores"], fields["audio"]
    path.write_text(json.dumps(fields))
    begin(path)
    with pytest.raises(ValueError, match="audio: found keep, expected drop as in"):
        begin(path, audio="keep")
