"""Screen: show decoded frames as a player does: RGB in standard range, upright, with square pixels, and opaque."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from videodiff.data.video.color import HDR, ORDINARY, UNSPECIFIED, WIDE, by_profile, on_white, to_sdr, to_srgb
from videodiff.data.video.geometry import (
    UPRIGHT,
    Display,
    Orientation,
    orientation_of_exif,
    orientation_of_matrix,
    same_shape,
)
from videodiff.data.video.info import DecodeError, is_still, read_still

# These decoders name the colour profile beside a frame; PyAV frees the name, as ffmpeg does, and the process crashes.
NAMING = ("png", "apng")
# What a frame says of its colours, and values that say nothing (unspecified, reserved) or are of no yuv (RGB).
COLORS, NOTHING = ("colorspace", "color_primaries", "color_trc"), (0, UNSPECIFIED, 3)
# Brands of files of pictures in the boxes of MP4. In videos players follow the transfer, not a colour profile.
PICTURES = ("avif", "avis", "heic", "heix", "mif1")


class Screen:
    """Shows the frames of one stream; frames of other sizes are scaled to the size of the first one.

    Make it before anything is decoded.
    """

    def __init__(
        self,
        source: bytes | str | Path,
        container: av.container.InputContainer,
        stream: av.VideoStream,
    ) -> None:
        self.context = stream.codec_context
        # Before anything is decoded the context says what the container does; the decoders of HEVC and VP9 forget it.
        stated = {name: int(getattr(self.context, name)) for name in COLORS}
        self.stated = {name: value for name, value in stated.items() if value not in NOTHING}
        found = read_still(source) if is_still(container) or container.format.name == "apng" else None
        self.still = orientation_of_exif(found.exif) if found else None
        self.profile = usable(found.profile) if found else b""
        self.boxed = container.metadata.get("major_brand") in PICTURES
        # The pixel shape in the container counts. Without one, each picture states its own.
        ratio, before = stream.sample_aspect_ratio, self.context.sample_aspect_ratio
        self.ratio, self.fixed = ratio or Fraction(1), ratio is not None and ratio != before
        # In a still picture it is the resolution for print, which viewers ignore.
        if self.still is not None:
            self.ratio, self.fixed = Fraction(1), True
        self.size: tuple[int, int] | None = None
        self.reformatter = VideoReformatter()

    def complete(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Write into a frame what the container alone says of its colours; return the frame."""
        for name, value in self.stated.items():
            if int(getattr(frame, name)) == UNSPECIFIED:
                setattr(frame, name, value)
        return frame

    def display_of(self, frame: av.VideoFrame) -> Display:
        """Return how the last decoded frame is shown."""
        turned = self.still
        if turned is None:
            turned = rotation(frame) if self.context.name in NAMING else orientation(frame)
        if self.boxed and not self.profile:
            self.profile = usable(beside(frame, "ICC_PROFILE"))
        ratio = self.ratio if self.fixed else self.context.sample_aspect_ratio or self.ratio
        return Display(ratio, turned, self.profile)

    def measure(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return the shown width and height of the last decoded frame, before it is scaled to the first."""
        return self.display_of(frame).size(frame.width, frame.height)

    def show(self, frame: av.VideoFrame) -> np.ndarray:
        """Return the last decoded frame: uint8 `h w c`, RGB; DecodeError if its aspect ratio differs from the first."""
        display = self.display_of(self.complete(frame))
        shown = display.size(frame.width, frame.height)
        self.size = self.size or shown
        if shown != self.size and not same_shape(shown, self.size):
            sizes = f"{show_size(self.size)} and {show_size(shown)}"
            raise DecodeError(f"found frames shown as {sizes}, expected one shape")
        target, form = display.orientation.swap(self.size), rgb_format(frame, display.profile)
        scaled = {} if target == (frame.width, frame.height) else {"interpolation": Interpolation.AREA}
        image = self.reformatter.reformat(frame, *target, form, threads=1, **scaled).to_ndarray()
        # A shortcut for most frames: the loader shows thousands a second.
        if form == "rgb24" and display.orientation == UPRIGHT and not display.profile:
            return image
        return np.ascontiguousarray(display.orientation.turn(to_standard(image, frame, display.profile)))


def show_size(size: tuple[int, int]) -> str:
    """Return width and height as text."""
    return f"{size[0]} x {size[1]}"


def orientation(frame: av.VideoFrame) -> Orientation:
    """Return the orientation of a frame from its display matrix."""
    matrix = beside(frame, "DISPLAYMATRIX")
    if matrix is None:
        return rotation(frame)
    return orientation_of_matrix(matrix) if matrix else UPRIGHT


def rotation(frame: av.VideoFrame) -> Orientation:
    """Return the orientation of a frame of which only the rotation can be read."""
    return orientation_of_exif({90: 8, -90: 6, 180: 3, -180: 3}.get(frame.rotation, 1))


def beside(frame: av.VideoFrame, kind: str) -> bytes | None:
    """Return side data of a frame, empty if it has none of this kind, None where none can be read."""
    try:
        return bytes(frame.side_data.get(kind, b""))
    # PyAV raises for kinds that newer versions of ffmpeg added.
    except ValueError:
        return None


def usable(profile: bytes | None) -> bytes:
    """Return an ICC profile, empty where it is none that colours can be converted by."""
    return profile if profile and to_srgb(profile) else b""


def transfer_of(frame: av.VideoFrame) -> str:
    """Return `pq` or `hlg` if a frame has high dynamic range, else an empty string."""
    return HDR.get(int(frame.color_trc), "")


def gamut_of(frame: av.VideoFrame) -> str:
    """Return `bt2020` or `p3` if a frame of ordinary range has colours beyond BT.709, else an empty string."""
    return "" if transfer_of(frame) else WIDE.get(int(frame.color_primaries), "")


def converted(frame: av.VideoFrame) -> str:
    """Return the transfer from which `to_sdr` converts a frame, empty if its colours stay."""
    return transfer_of(frame) or (ORDINARY if gamut_of(frame) else "")


@cache
def has_alpha(pixels: str) -> bool:
    """Return whether pictures of this pixel format may be transparent."""
    return pixels == "pal8" or any(part.is_alpha for part in av.VideoFormat(pixels).components)


@cache
def is_deep(pixels: str) -> bool:
    """Return whether pictures of this pixel format are RGB or grey with more than 8 bits.

    ffmpeg makes 8 bits of them by 256 instead of 257: half a level too bright, in a pattern.
    """
    form = av.VideoFormat(pixels)
    return (form.is_rgb or pixels.startswith(("gray", "ya"))) and any(part.bits > 8 for part in form.components)


def is_plain(frame: av.VideoFrame, profile: bytes = b"") -> bool:
    """Return whether a frame is opaque, of ordinary colours, and in a format that ffmpeg converts well."""
    unlike = profile or converted(frame) or has_alpha(frame.format.name) or is_deep(frame.format.name)
    return not unlike


def rgb_format(frame: av.VideoFrame, profile: bytes = b"") -> str:
    """Return the pixel format in which `to_standard` takes this frame."""
    form = "rgba" if has_alpha(frame.format.name) else "rgb"
    deep = is_deep(frame.format.name) or (converted(frame) and not profile)
    return form + ({"rgba": "64le", "rgb": "48le"} if deep else {"rgba": "", "rgb": "24"})[form]


def to_standard(image: np.ndarray, frame: av.VideoFrame, profile: bytes = b"") -> np.ndarray:
    """Convert an image `h w c` of a frame from its `rgb_format` to uint8 RGB in standard range on white.

    profile: the ICC profile of a picture, whose word goes before that of the frame.
    """
    color = np.ascontiguousarray(image[..., :3])
    if not profile and (transfer := converted(frame)):
        color = to_sdr(color, transfer, int(frame.color_primaries))
    elif color.dtype == np.uint16:
        color = ((color.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if profile:
        color = by_profile(color, profile)
    if image.shape[-1] == 3:
        return color
    return on_white(color, image[..., 3:] >> 8 if image.dtype == np.uint16 else image[..., 3:])


def is_clear(image: np.ndarray) -> bool:
    """Return whether a part of an image `h w c` is transparent."""
    return bool(image.shape[-1] == 4 and (image[..., 3] < np.iinfo(image.dtype).max).any())


def light_notes(frame: av.VideoFrame) -> dict[str, str]:
    """Return the transfer of a frame with high dynamic range, or the gamut of a frame with a wide one."""
    found = {"transfer": transfer_of(frame), "gamut": gamut_of(frame)}
    return {name: value for name, value in found.items() if value}


def color_notes(frame: av.VideoFrame) -> dict[str, str]:
    """Return notes on converted colours: the transfer or gamut, and the background of transparent parts."""
    light = light_notes(frame)
    clear = has_alpha(frame.format.name) and is_clear(frame.to_ndarray(format=rgb_format(frame), threads=1))
    return light | ({"alpha": "white"} if clear else {})
