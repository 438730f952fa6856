"""Colour: high dynamic range to the range of ordinary video, and transparent pictures onto a white ground."""

from __future__ import annotations

import io
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageCms

# Matrices of BT.601: unspecified, BT.470 BG and SMPTE 170M, in the numbers of ITU-T H.273.
UNSPECIFIED, BT601 = 2, (2, 5, 6)
# Transfer characteristics of high dynamic range, in the numbers of ITU-T H.273.
HDR = {16: "pq", 18: "hlg"}
# Any other transfer: only the primaries are converted to BT.709.
ORDINARY = "sdr"
# Luminance in cd/m2: white of ordinary video as HDR shows it (ITU-R BT.2408), and the peak of a nominal HLG display
# (BT.2100).
WHITE, HLG_PEAK = 203.0, 1000.0
# Light below this share of white is unchanged. Brighter light is compressed and stays below white.
KNEE = 0.85
# Gamma of a display of ordinary video, between 2.4 of a dim studio (BT.1886) and the inverse of the camera's curve
# (BT.709).
GAMMA = 2.2
# Light in RGB of BT.2020, and of the P3 of cinemas and phones, to that in RGB of BT.709 (BT.2407; SMPTE EG 432-1).
TO_BT709 = {
    9: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    12: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
    1: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}
BT2020 = 9
# Primaries whose colours reach beyond BT.709.
WIDE = {9: "bt2020", 12: "p3"}
# Weights of R, G and B of BT.2020 in luminance.
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
# Entries of the table from light, 0 to 1, to signal; they are denser in the dark.
LEVELS = 4096


def pq_light(signal: np.ndarray) -> np.ndarray:
    """Return the light of a PQ signal from 0 to 1, in shares of white: the EOTF of SMPTE ST 2084."""
    root = np.power(signal, 32 / 2523)
    share = np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)
    return 10_000 / WHITE * np.power(share, 16384 / 2610)


def hlg_light(signal: np.ndarray) -> np.ndarray:
    """Return the light before the camera of an HLG signal, from 0 to 1: the inverse OETF of ARIB STD-B67."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def sdr_light(signal: np.ndarray) -> np.ndarray:
    """Return the light of a signal of ordinary video, in shares of white."""
    return signal**GAMMA


@cache
def light_table(transfer: str) -> np.ndarray:
    """Return the light of every signal of 16 bits."""
    find = {"pq": pq_light, "hlg": hlg_light, ORDINARY: sdr_light}[transfer]
    return find(np.arange(65536) / 65535).astype(np.float32)


@cache
def signal_table() -> np.ndarray:
    """Return a table from light to signal, 0 to 255; entry i is for light (i / (LEVELS - 1)) ** 2."""
    return np.round(255 * (np.arange(LEVELS) / (LEVELS - 1)) ** (2 / GAMMA)).astype(np.uint8)


def to_sdr(image: np.ndarray, transfer: str, primaries: int) -> np.ndarray:
    """Return an image, uint16 `h w c` in RGB, as ordinary video, uint8: BT.709, white where HDR has 203 cd/m2.

    transfer: pq, hlg, or sdr for ordinary range, in which white stays white; primaries: in the numbers of H.273,
    unknown ones are taken for those of BT.2020.
    """
    light = light_table(transfer)[image]
    if transfer == "hlg":
        # A display shows bright scenes brighter: the OOTF of BT.2100 for one of 1000 cd/m2.
        luminance = np.maximum(light @ LUMINANCE, 1e-6)[..., None]
        light *= HLG_PEAK / WHITE * luminance**0.2
    light = np.maximum(light @ np.array(TO_BT709.get(primaries, TO_BT709[BT2020]), np.float32).T, 0)
    light = np.minimum(light, 1) if transfer == ORDINARY else compress(light)
    return signal_table()[np.round((LEVELS - 1) * np.sqrt(light)).astype(np.uint16)]


def compress(light: np.ndarray) -> np.ndarray:
    """Map light of any strength below 1: unchanged up to `KNEE`, then a smooth curve that flattens."""
    over = np.maximum(light - KNEE, 0) / (1 - KNEE)
    return np.minimum(light, KNEE) + (1 - KNEE) * over / (1 + over)


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return an image laid on white: uint8 `h w 3`, with `h w 1`, straight alpha."""
    color, alpha = color.astype(np.uint16), alpha.astype(np.uint16)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


@lru_cache(maxsize=8)
def to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from an ICC profile to sRGB; None if the profile does not define RGB."""
    try:
        found = ImageCms.getOpenProfile(io.BytesIO(profile))
        if found.profile.xcolor_space.strip() != "RGB":
            return None
        return ImageCms.buildTransform(found, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    # Viewers ignore a damaged profile.
    except (ImageCms.PyCMSError, OSError):
        return None


def by_profile(image: np.ndarray, profile: bytes) -> np.ndarray:
    """Convert an image, uint8 `h w c`, from the RGB of an ICC profile to sRGB."""
    return np.array(ImageCms.applyTransform(Image.fromarray(image), to_srgb(profile)))
