"""Film strips: the frames of a clip side by side, the given ones outlined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videodiff.data.video.decode import DecodeError, decode, probe
from videodiff.words import count_text

GIVEN = (224, 138, 0)
HAIRLINE = (128, 128, 128, 90)
PAPER, INK, MUTED = "#ffffff", "#1b1c1e", "#74756f"
EDGE, GAP = 2, 3
# A frame is shown up to so many times as wide as a cell is high: WebP ends at 16,383 pixels.
WIDEST = 8


@dataclass(frozen=True)
class Example:
    """A clip for the hero: frames are uint8 `t h w c`, `truth` is None for a clip made from its caption alone."""

    caption: str
    given: int
    sampled: np.ndarray
    truth: np.ndarray | None = None


class UnreadableError(ValueError):
    """A video that cannot be shown."""


def read_frames(path: Path) -> np.ndarray:
    """Decode a whole video: uint8 `t h w c`."""
    video = path.read_bytes()
    try:
        return decode(video, range(probe(video).frames))
    except DecodeError as error:
        raise UnreadableError(f"{path}: {error}") from error


def film_strip(frames: Sequence[np.ndarray] | np.ndarray, given: int, scale: int) -> Image.Image:
    """Put the frames `t h w c` (uint8) side by side, each pixel a square of side `scale`, the first `given` outlined.

    The background is transparent, so that the strip sits on a light page as well as on a dark one.
    """
    tiles = [tile(frame, scale) for frame in frames]
    if not tiles:
        raise ValueError("film_strip: found no frames, expected at least one")
    w, h = tiles[0].width + 2 * EDGE, tiles[0].height + 2 * EDGE
    strip = Image.new("RGBA", (len(tiles) * (w + GAP) - GAP, h))
    for i, image in enumerate(tiles):
        paste_framed(strip, image, (i * (w + GAP), 0), outlined=i < given)
    return strip


def tile(frame: np.ndarray, scale: int) -> Image.Image:
    """Turn a frame `h w c` into an image, every pixel repeated `scale` times both ways."""
    return Image.fromarray(np.ascontiguousarray(frame).repeat(scale, 0).repeat(scale, 1))


def paste_framed(canvas: Image.Image, image: Image.Image, corner: tuple[int, int], outlined: bool) -> None:
    """Paste an image and draw its outline around it, never over it."""
    x, y = corner
    right, bottom = x + image.width + 2 * EDGE - 1, y + image.height + 2 * EDGE - 1
    inset = 0 if outlined else EDGE - 1
    colour = (*GIVEN, 255) if outlined else HAIRLINE
    ImageDraw.Draw(canvas).rectangle((x + inset, y + inset, right - inset, bottom - inset), fill=colour)
    canvas.paste(image, (x + EDGE, y + EDGE))


def hero(examples: Sequence[Example], columns: int = 9, cell: int = 96) -> Image.Image:
    """Draw clips under their captions: the given frames, then the sampled frames above the true ones.

    `columns` frames follow the given ones, evenly spaced; `cell` is the height of a frame in pixels.
    """
    blocks = [block(example, columns, cell) for example in examples]
    if not blocks:
        raise ValueError("hero: found no clips, expected at least one")
    margin, apart = cell // 3, cell // 3
    height = sum(image.height for image in blocks) + apart * (len(blocks) - 1) + 2 * margin
    canvas = Image.new("RGBA", (max(image.width for image in blocks) + 2 * margin, height), PAPER)
    top = margin
    for image in blocks:
        canvas.alpha_composite(image, (margin, top))
        top += image.height + apart
    return canvas.convert("RGB")


def block(example: Example, columns: int, cell: int) -> Image.Image:
    """Draw one clip of the hero: its caption, its given frames, and a line for each of sampled and truth."""
    lines = {"sampled": example.sampled} | ({} if example.truth is None else {"truth": example.truth})
    strips = {name: fit(frames[later(len(frames), example.given, columns)], cell) for name, frames in lines.items()}
    known = fit(example.sampled[: example.given][-3:], cell, given=3) if example.given else None
    text, label = ImageFont.load_default(cell * 0.24), ImageFont.load_default(cell * 0.19)
    top, line = round(cell * 0.42), strips["sampled"].height + GAP
    indent = (known.width + GAP * 3 if known else 0) + round(cell * 0.85)
    image = Image.new("RGBA", (indent + strips["sampled"].width, top + line * len(strips) - GAP))
    draw = ImageDraw.Draw(image)
    draw.text((0, 0), shorten(example.caption or "(no caption)", text, image.width), font=text, fill=INK)
    if known:
        # The given frames belong to both lines, so they stand between them.
        y = top + (image.height - top - known.height) // 2
        image.alpha_composite(known, (0, y))
        draw.text((EDGE, y - GAP), "given", font=label, fill=GIVEN, anchor="ld")
    for row, (name, strip) in enumerate(strips.items()):
        y = top + row * line
        draw.text((indent - GAP * 3, y + strip.height // 2), name, font=label, fill=MUTED, anchor="rm")
        image.alpha_composite(strip, (indent, y))
    return image


def later(frames: int, given: int, columns: int) -> np.ndarray:
    """Return the indices of at most `columns` frames after the given ones, evenly spaced, the last one included."""
    rest = frames - given
    if rest < 1:
        raise ValueError(
            f"film strip: found {count_text(frames, 'frame')} of which {given} are given, expected some that are not"
        )
    return given + np.unique(np.linspace(0, rest - 1, min(columns, rest)).round().astype(int))


def fit(frames: np.ndarray, cell: int, given: int = 0) -> Image.Image:
    """Return a strip of frames about `cell` pixels high: small ones by whole multiples, large ones reduced smoothly.

    Frames of extreme shape become less high, so that none is over `WIDEST` cells wide, and at least a pixel wide.
    """
    h, w = frames.shape[1:3]
    scale = min(Fraction(cell, h), Fraction(WIDEST * cell, w))
    if scale >= Fraction(2, 3):
        return film_strip(frames, given, max(round(scale), 1))
    size = max(int(w * scale), 1), max(int(h * scale), 1)
    small = [np.asarray(Image.fromarray(frame).resize(size, Image.LANCZOS)) for frame in frames]
    return film_strip(small, given, 1)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text so that it is at most `width` pixels wide."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
