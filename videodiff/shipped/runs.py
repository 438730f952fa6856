"""Find a run by the name of its folder, or by the name of a run that comes with videodiff.

A verb that only reads takes a run that comes with videodiff from where it lies. One that writes clips or figures into
the run copies it to `runs/<name>` first: from then on it is a run like any other.
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
    """Return the folder that holds a run now: nothing is copied."""
    path = Path(name)
    if path.exists() or str(name) not in shipped():
        return path
    source, copy = HOME / path, copy_of(path)
    if not copy.exists():
        return source
    if not same(source, copy):
        raise ValueError(
            f"run: found another run in {copy} than the {name} that comes with videodiff, expected its copy; call it "
            f"{copy}, or move it away"
        )
    return copy


def take_run(name: str | Path) -> Path:
    """Return the folder of a run to work with; one that comes with videodiff is copied first."""
    found, copy = find_run(name), copy_of(name)
    if found != HOME / name:
        return found
    copy.parent.mkdir(exist_ok=True)
    partial = partial_of(copy)
    try:
        shutil.copytree(found, partial)
        os.rename(partial, copy)
        say(f"videodiff: the run {name} comes with videodiff; it is copied to {copy}")
    except OSError:
        # Another process of this call may have been faster.
        if not copy.exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return find_run(name)


def copy_of(name: str | Path) -> Path:
    """Return where the copy of a run that comes with videodiff lies."""
    return Path("runs") / name


def same(source: Path, copy: Path) -> bool:
    """Return whether a folder is a copy of a run that comes with videodiff: it has the same settings."""
    config = copy / CONFIG
    return config.is_file() and config.read_bytes() == (source / CONFIG).read_bytes()
