"""Checks of a whole configuration before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from videodiff.verbs.config.checking import check_folders


@pytest.mark.parametrize(
    ("resume", "root", "told"),
    [
        (None, "sets/a", "sets/a: found no such folder, expected a dataset"),
        ("runs/a", "/sets/a", "/sets/a: found no such folder, expected a dataset"),
        ("../runs/a", "sets/a", "below the current folder, {cwd}: change to the folder where the run began, or give "),
    ],
)
def test_a_dataset_that_is_missing_where_a_run_is_resumed_is_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: str | None, root: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create({"resume": resume, "data": {"root": root, "validation_root": None}})
    with pytest.raises(FileNotFoundError) as found:
        check_folders("train", cfg, False)
    said = str(found.value)
    assert said.startswith(f"data.root: {root}: found no such folder, expected a dataset")
    assert told.format(cwd=tmp_path) in said
    assert ("where it is now" in said) == (resume == "../runs/a")
