"""Tars without a manifest, written by common tools."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import webdataset

from tests.material.made_clips import sample

Members = Mapping[str, bytes]


def clip(number: int, frames: int = 8) -> dict[str, bytes]:
    """Return the files of a clip whose content and caption follow from its number."""
    members, _ = sample(number, frames)
    return members


def by_tarfile(path: Path, samples: Mapping[str, Members], mode: str = "w") -> Path:
    """Write samples by Python's tarfile, members in the order given."""
    with tarfile.open(path, mode) as tar:
        for key, members in samples.items():
            for ending, data in members.items():
                add(tar, f"{key}.{ending}", data)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append one file."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def by_library(path: Path, samples: Mapping[str, Members]) -> Path:
    """Write samples by webdataset's writer, as its users do."""
    with webdataset.TarWriter(str(path)) as tar:
        for key, members in samples.items():
            tar.write({"__key__": key, **members})
    return path


def write_tars(root: Path, counts: Sequence[int] = (4, 4, 4), frames: int = 8) -> list[str]:
    """Write `s-0.tar` ... with these counts of clips (clip0, clip1, ...), by tarfile and webdataset in turn."""
    root.mkdir(parents=True, exist_ok=True)
    paths, first = [], 0
    for number, count in enumerate(counts):
        samples = {f"clip{i}": clip(i, frames) for i in range(first, first + count)}
        paths.append((by_library if number % 2 else by_tarfile)(root / f"s-{number}.tar", samples))
        first += count
    return list(map(str, paths))
