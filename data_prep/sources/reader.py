"""A source: one function that reads a format of metadata; a file of `conf/format` names it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from data_prep.sources.metadata.rows import Items
from videodiff.data.storage.listing import Passed

# A preparation passes these arguments to a reader that has them; all other arguments are the reader's own options.
GIVEN = ("passed", "work")


class Reader(Protocol):
    """Yields the clips of a source, and a BadInput with place and reason for every entry that cannot become a clip.

    Its further arguments are its options, `reader.<name>` in a configuration. Two of them are given to it if it has
    them: `passed`, which counts the files that it skips, and `work`, the work folder.
    """

    __name__: str

    def __call__(self, source: str | Path, **options: Any) -> Items: ...


def open_source(reader: Reader, source: str | Path, options: Mapping[str, Any], passed: Passed, work: Path) -> Items:
    """Return the items of a source; ValueError for an option that its reader does not take.

    An empty option counts as not given, so that one configuration file serves all readers.
    """
    taken = list(inspect.signature(reader).parameters)[1:]
    own = [name for name in taken if name not in GIVEN]
    options = {name: value for name, value in options.items() if value}
    if unknown := [name for name in options if name not in own]:
        format = reader.__name__.removeprefix("read_")
        raise ValueError(
            f"reader.{unknown[0]}: found {options[unknown[0]]!r}, expected none for format={format}, which takes "
            f"{', '.join(own) or 'no option'}"
        )
    given = {name: value for name, value in zip(GIVEN, (passed, work), strict=True) if name in taken}
    return reader(source, **options, **given)
