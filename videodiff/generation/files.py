"""Write sampled clips as files: an mp4, a poster, a contact sheet, and a JSON with all settings to remake the clip."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videodiff.data.storage.files import abandoned, holding, replacing, sync, write_whole
from videodiff.data.video.encode import encode

# A contact sheet has so many frames, in rows of so many, each at least so high, with an edge of so many pixels.
TILES, COLUMNS, LEAST, EDGE = 16, 8, 80, 2
# What stands beside the mp4 of a clip, and the end of the hidden name that keeps its number while it is made.
BESIDE, MARK = (".json", ".sheet.png", ".poster.png", ".npy"), ".making"
ORANGE, GREY = (224, 138, 0), (205, 205, 205)


def write_clip(path: Path, frames: Iterable[np.ndarray], fps: float, crf: int = 18) -> Path:
    """Write frames uint8 `h w c` as mp4; H.264 needs even sizes, so the last row or column may be repeated."""
    return write_whole(path, encode(map(even, frames), fps, crf=crf))


def even(frame: np.ndarray) -> np.ndarray:
    """Return a frame `h w c` of even size: the last row or column may be repeated."""
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return frame


class Passing:
    """The frames of one clip on their way into a file: their checksum, and the few that poster and sheet show.

    `total` is the number of frames that come; nothing else is kept of them, so that a clip may have any length.
    """

    def __init__(self, total: int) -> None:
        self.shown = {round(place) for place in np.linspace(0, total - 1, min(total, TILES))}
        self.kept: dict[int, np.ndarray] = {}
        self.hash, self.count = hashlib.sha256(), 0

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the frames `h w c` as they come."""
        for frame in frames:
            if self.count in self.shown:
                self.kept[self.count] = frame.copy()
            self.hash.update(np.ascontiguousarray(frame))
            self.count += 1
            yield frame

    def poster(self) -> np.ndarray:
        """Return the frame in the middle."""
        return self.kept[sorted(self.kept)[len(self.kept) // 2]]

    def sheet(self, known: Collection[int] = ()) -> np.ndarray:
        """Return frames of equal distance in rows of eight, small ones enlarged; known ones have an orange edge."""
        return contact_sheet([(self.kept[number], number in known) for number in sorted(self.kept)])


def contact_sheet(tiles: Sequence[tuple[np.ndarray, bool]]) -> np.ndarray:
    """Return frames uint8 `h w c` as one picture, in rows of eight; marked frames have an orange edge."""
    height, width = tiles[0][0].shape[:2]
    scale, rows = max(1, LEAST // height), -(-len(tiles) // COLUMNS)
    cell = np.array([height, width]) * scale + 2 * EDGE
    sheet = np.full((*(cell * (rows, min(len(tiles), COLUMNS))), 3), 255, np.uint8)
    for number, (frame, marked) in enumerate(tiles):
        top, left = cell * (number // COLUMNS, number % COLUMNS)
        sheet[top : top + cell[0], left : left + cell[1]] = ORANGE if marked else GREY
        image = frame.repeat(scale, 0).repeat(scale, 1)
        sheet[top + EDGE : top + cell[0] - EDGE, left + EDGE : left + cell[1] - EDGE] = image
    return sheet


def png(frame: np.ndarray) -> bytes:
    """Return a frame uint8 `h w c` as PNG."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "png")
    return file.getvalue()


def write_clips(folder: Path, clips: Mapping[str, np.ndarray], rates: Sequence[float]) -> list[Path]:
    """Write clips under their names into a folder that appears complete or not at all; return the paths of the mp4."""
    with replacing_folder(folder) as partial:
        for (name, frames), fps in zip(clips.items(), rates, strict=True):
            write_clip(partial / f"{name}.mp4", frames, fps)
    return [folder / f"{name}.mp4" for name in clips]


def add_clip(
    out: Path,
    frames: Iterable[np.ndarray],
    total: int,
    fps: float,
    facts: dict[str, Any],
    number: int | None = None,
    lossless: bool = False,
) -> Path:
    """Write a clip of `total` frames and its JSON under a free number of a folder; return the path of the mp4.

    The first free number from `number` on is taken. The frames are asked for one by one and not kept. A poster and a
    contact sheet stand beside the clip, and with `lossless` its frames as `.npy`. The mp4 takes its name last, when the
    others are there: see `remove_unfinished`.
    """
    out.mkdir(parents=True, exist_ok=True)
    passing = Passing(total)
    with free_number(out, number) as path:
        names = [path.with_suffix(suffix) for suffix in (".mp4", *BESIDE)]
        try:
            with ExitStack() as stack:
                # The first one that is opened takes its name last.
                clip, facts_file, sheet, poster = (stack.enter_context(replacing(name)) for name in names[:4])
                frames = passing(frames)
                with closing(keeping(frames, total, names[4]) if lossless else frames) as shown:
                    clip.write(encode(map(even, shown), fps))
                poster.write(png(passing.poster()))
                sheet.write(png(passing.sheet(facts.get("known") or ())))
                facts = facts | {"frames_sha256": passing.hash.hexdigest()}
                facts_file.write(json.dumps(facts, indent=1, ensure_ascii=False).encode())
        except BaseException:
            for name in names:
                name.unlink(missing_ok=True)
            raise
    return path


def keeping(frames: Iterable[np.ndarray], total: int, path: Path) -> Iterator[np.ndarray]:
    """Yield frames and write them, as they are, into an array `t h w c` that appears when it is whole."""
    with replacing(path) as file:
        for number, frame in enumerate(frames):
            if number == 0:
                shape = (total, *frame.shape)
                header = {"descr": np.lib.format.dtype_to_descr(frame.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(frame))
            yield frame


def next_number(out: Path) -> int:
    """Return the number after the largest one in a folder, which loses what killed writers left."""
    remove_unfinished(out)
    taken = {path.name.partition(".")[0] for path in out.iterdir()} if out.is_dir() else set()
    return max((int(stem) + 1 for stem in taken if stem.isdecimal()), default=0)


def remove_unfinished(out: Path) -> None:
    """Remove the files of clips whose writer was killed; without its mp4 a clip is unfinished."""
    for mark in out.glob(f".*{MARK}"):
        stem = mark.name[1 : -len(MARK)]
        if stem.isdecimal() and mark.is_file() and not mark.is_symlink():
            path = out / f"{stem}.mp4"
            with suppress(OSError):
                abandoned(mark, [] if path.exists() else [path.with_suffix(suffix) for suffix in BESIDE])


@contextmanager
def free_number(out: Path, number: int | None = None) -> Iterator[Path]:
    """Take the first free number from `number` on, safely among several writers; yield the path for its mp4.

    A hidden file keeps the number while the block runs. If the process is killed, the next writer removes it and what
    lies beside it, and the number is free again.
    """
    number = next_number(out) if number is None else number
    with ExitStack() as stack:
        while True:
            with suppress(FileExistsError):
                stack.enter_context(holding(out / f".{number:03d}{MARK}"))
                if not any(out.glob(f"{number:03d}.*")):
                    break
                stack.close()
            number += 1
        yield out / f"{number:03d}.mp4"


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block ends without error it takes the name and replaces the old folder."""
    partial, former = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "former"))
    for left in (partial, former):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync(partial)
        if folder.exists():
            folder.rename(former)
        try:
            partial.rename(folder)
        except OSError:
            former.rename(folder)
            raise
        sync(folder.parent)
    finally:
        for left in (partial, former):
            shutil.rmtree(left, ignore_errors=True)
