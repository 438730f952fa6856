"""The first batches of a run as film strips: one HTML page, or one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videodiff.data.storage.files import write_alone
from videodiff.report.page import environment, png
from videodiff.report.strip import fit, shorten

CELL, COLUMNS, MARGIN = 96, 8, 24


class Shown(NamedTuple):
    """A clip of a batch: frames uint8 `t h w c`, None if it cannot be read; `note` states its source or the reason."""

    caption: str
    note: str
    frames: np.ndarray | None


class Step(NamedTuple):
    """A step of training: its description, and its first clips."""

    title: str
    clips: list[Shown]


def write_batches(path: str | Path, title: str, steps: Sequence[Step]) -> Path:
    """Write strips of the clips of each step into an .html or a .png: at most `COLUMNS` frames, evenly spaced."""
    path = Path(path)
    if path.suffix not in (".html", ".png"):
        raise ValueError(f"strips: found {path}, expected a name that ends in .html or .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        return write_alone(path, png(picture(steps)))
    shown = [(step, [(clip, png(strip(clip.frames)) if clip.frames is not None else None) for clip in step.clips])
             for step in steps]  # fmt: skip
    page = environment().get_template("batches.html.j2").render(title=title, steps=shown)
    return write_alone(path, page.encode())


def strip(frames: np.ndarray) -> Image.Image:
    """Draw a clip as a strip."""
    count = len(frames)
    return fit(frames[np.unique(np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int))], CELL)


def picture(steps: Sequence[Step]) -> Image.Image:
    """Draw all strips below one another, each under its caption."""
    head, text, small = (ImageFont.load_default(size) for size in (20, 15, 12))
    drawn = [(step, [(clip, strip(clip.frames) if clip.frames is not None else None) for clip in step.clips])
             for step in steps]  # fmt: skip
    strips = [image for _, clips in drawn for _, image in clips if image]
    width = max([640, *(image.width for image in strips)]) + 2 * MARGIN
    lines = []
    for step, clips in drawn:
        lines.append((step.title, head, "#1b1c1e", None, 40))
        for clip, image in clips:
            lines.append((clip.caption or "(no caption)", text, "#1b1c1e", None, 22))
            lines.append((clip.note, small, "#74756f", image, 20 + (image.height + 16 if image else 0)))
    canvas = Image.new("RGBA", (width, sum(line[-1] for line in lines) + 2 * MARGIN), "#ffffff")
    draw, top = ImageDraw.Draw(canvas), MARGIN
    for words, font, ink, image, height in lines:
        draw.text((MARGIN, top), shorten(words, font, width - 2 * MARGIN), font=font, fill=ink)
        if image:
            canvas.alpha_composite(image, (MARGIN, top + 20))
        top += height
    return canvas.convert("RGB")
