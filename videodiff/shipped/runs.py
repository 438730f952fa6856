"""Find a run by the name of its folder, or by the name of a run that comes with videodiff.

A run that comes with videodiff is copied to `runs/<name>` when it is first used: from then on it is a run like any
other, which clips and figures are written into.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from videodiff.data.storage.files import partial_of
from videodiff.printing import say

HOME = Path(__file__).parent
CONFIG = "config.yaml"


def shipped() -> list[str]:
    """Return the names of the runs that come with videodiff."""
    return sorted(path.parent.name for path in HOME.glob(f"*/{CONFIG}"))


def find_run(name: str | Path) -> Path:
    """Return the folder of a run; the name of a run that comes with videodiff stands for its copy in `runs`."""
    path = Path(name)
    if path.exists() or str(name) not in shipped():
        return path
    source, copy = HOME / path, Path("runs") / path
    if not copy.exists():
        copy.parent.mkdir(exist_ok=True)
        partial = partial_of(copy)
        shutil.copytree(source, partial)
        try:
            os.rename(partial, copy)
            say(f"videodiff: the run {name} comes with videodiff; it is copied to {copy}")
        except OSError:
            # Another process of this call was faster.
            shutil.rmtree(partial)
    if not same(source, copy):
        raise ValueError(
            f"run: found another run in {copy} than the {name} that comes with videodiff, expected its copy; call it "
            f"{copy}, or move it away"
        )
    return copy


def same(source: Path, copy: Path) -> bool:
    """Return whether a folder is a copy of a run that comes with videodiff: it has the same settings."""
    config = copy / CONFIG
    return config.is_file() and config.read_bytes() == (source / CONFIG).read_bytes()
