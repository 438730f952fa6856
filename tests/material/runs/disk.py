"""What a power cut would leave: of each file and folder, what it held when it was last forced to the disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest


def content(path: Path) -> Any:
    """Return the names in a folder, or a checksum of a file."""
    return sorted(os.listdir(path)) if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()


class Disk:
    """Notes each `fsync` and each renaming while it happens.

    `lost` has, by the final name of what was renamed, the paths in it whose content a power cut would have taken.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: dict[Path, Any] = {}
        self.lost: dict[Path, list[Path]] = {}
        fsync, replace = os.fsync, os.replace

        def force(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            before = content(path)
            fsync(descriptor)
            self.kept[path] = before

        def rename(source: Path, target: Path) -> None:
            if not target.name.endswith(".partial"):
                below = [source, *source.rglob("*")]
                self.lost[target] = [path for path in below if self.kept.get(path) != content(path)]
            replace(source, target)
            if source in self.kept:
                self.kept[target] = self.kept.pop(source)

        monkeypatch.setattr(os, "fsync", force)
        monkeypatch.setattr(os, "replace", rename)

    def holds(self, path: Path) -> bool:
        """Return whether what is renamed to this path stays so, with all that it holds, after a power cut."""
        return self.lost[path] == [] and path.name in self.kept[path.parent]
