"""What a run folder says of its origin, without what opens other people's doors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from videodiff.training.run.record import to_tell, write_record
from videodiff.verbs.train.resume import to_keep

ROOT = "https://me:hunter2@host/set?X-Amz-Signature=hunter2&part=3"


def test_no_file_of_a_record_holds_a_password_or_a_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["name=x", f"data.root={ROOT}", f"data.more=[{{root: '{ROOT}', repeat: 0.5}}]", "trust=[a.B]"]
    monkeypatch.setattr(sys, "argv", ["videodiff", "train", *overrides])
    write_record(tmp_path, to_tell({"data": {"root": ROOT, "more": [{"root": ROOT}]}}), to_keep(overrides))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "overrides.yaml", "command.txt"} <= {path.name for path in files}
    assert [path.name for path in files if "hunter2" in path.read_text()] == []
    assert "host/set" in (tmp_path / "config.yaml").read_text()
    # What cannot be told is given again with resume=.
    assert yaml.safe_load((tmp_path / "overrides.yaml").read_text()) == ["name=x"]
