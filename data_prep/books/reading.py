"""What one reading of the metadata found beside new inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reading:
    """Counts of a reading.

    repeated: rows of an id that another row had named before; updated: inputs of which the metadata now says something
    else; omitted: notes that were left out, by name; changed: files that are no longer as they were worked on, and the
    names of the first few.
    """

    KEYS = ("repeated", "updated", "notes_left_out", "changed", "changed_files")
    repeated: int = 0
    updated: int = 0
    omitted: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    changed_files: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the counts that are not 0, as `summary.json` has them."""
        omitted = dict(sorted(self.omitted.items()))
        values = self.repeated, self.updated, omitted, self.changed, self.changed_files
        counts = dict(zip(self.KEYS, values, strict=True))
        return {name: count for name, count in counts.items() if count}

    @classmethod
    def from_json(cls, counts: Mapping[str, Any]) -> Reading:
        """Return what `to_json` gave."""
        omitted = Counter(counts.get("notes_left_out", {}))
        changed = counts.get("changed", 0), list(counts.get("changed_files", ()))
        return cls(counts.get("repeated", 0), counts.get("updated", 0), omitted, *changed)
