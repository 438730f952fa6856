"""A source is one function: its signature says which options it takes and what a preparation gives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate

from data_prep.books.request import ClipRequest, Place
from data_prep.sources.reader import open_source
from data_prep.sources.table import read_table
from videodiff.data.storage.listing import Passed
from videodiff.verbs.config.groups import conf_dir, options


def read_mine(source: str | Path, prefix: str = "", passed: Passed | None = None) -> Iterator[Any]:
    passed["a file of another kind"] += 1
    for name in Path(source).read_text().split():
        yield ClipRequest(Place("mine", 1), prefix + name)


def test_a_reader_of_ones_own_gets_its_options_and_what_its_signature_asks_for(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a.mp4 b.mp4")
    passed, given = Passed(), {"prefix": "x/", "licence": "", "unit": None}
    items = list(open_source(read_mine, tmp_path / "mine", given, passed, tmp_path))
    assert [item.source for item in items] == ["x/a.mp4", "x/b.mp4"]
    assert passed == {"a file of another kind": 1}


def test_an_option_that_a_reader_does_not_take_is_named_with_those_that_it_takes(tmp_path: Path) -> None:
    message = "reader.columns: found {'a': 'b'}, expected none for format=mine, which takes prefix"
    with pytest.raises(ValueError, match=message):
        open_source(read_mine, tmp_path, {"columns": {"a": "b"}}, Passed(), tmp_path)
    with pytest.raises(ValueError, match=r"reader\.work: found 'x', expected none for format=mine"):
        open_source(read_mine, tmp_path, {"work": "x"}, Passed(), tmp_path)
    with pytest.raises(ValueError, match="which takes columns, unit, licence, origin"):
        open_source(read_table, tmp_path, {"captions": "x"}, Passed(), tmp_path)


@pytest.mark.parametrize("format", options("format"))
def test_every_format_of_conf_names_its_reader(format: str) -> None:
    reader = instantiate(yaml.safe_load((conf_dir() / "format" / f"{format}.yaml").read_text())).func
    assert reader.__name__ == f"read_{format}"
