"""Text: the area that burnt-in text covers, by the detector and the reader of rapidocr (PP-OCR).

The detector was trained on documents and mistakes smooth ground and dark shapes for text. Therefore a region counts
only if it has the shape of a line of writing in any script, or if the reader can read it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import NamedTuple

import cv2
import numpy as np
import onnxruntime

from data_prep.score.pixel_score import SHARE, PixelScore

# Constants of DB post-processing (Liao et al. 2020, arXiv 1911.08947): the least probability of a pixel, the least mean
# probability of a region, and the factor by which regions are enlarged.
PIXEL, REGION, UNCLIP = 0.3, 0.6, 1.6
# A line of writing: least ratio of length to height, greatest height as a share of the frame, least probability.
LONG, HIGH, SURE = 5.0, 0.33, 0.75
# Any other region: greatest height as a share of the frame, and the least number and mean probability of its
# characters. Higher regions are things.
HIGHEST, CHARACTERS, LEGIBLE = 0.4, 3, 0.75
# Frames per clip, in the middle of its halves; short side for the detector, whose cost grows with the square of it.
LOOKS, SIDE = 2, 192
# Height, least width and greatest width of the reader's input.
LINE, NARROW, WIDE = 48, 48, 480


class Region(NamedTuple):
    """A rectangle that may contain text, in OpenCV's form, in pixels, and its probability."""

    rectangle: tuple[tuple[float, float], tuple[float, float], float]
    likely: float

    @property
    def sides(self) -> tuple[float, float]:
        """Return height and length."""
        low, high = sorted(self.rectangle[1])
        return low, high


def text(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Return the largest share of the area of a frame of uint8 `t h w c` that text covers, 0 to 1."""
    places = (np.arange(LOOKS) + 0.5) / LOOKS * (len(frames) - 1)
    return {"text": max(text_area(frames[number]) for number in np.unique(places.round().astype(int)))}


def text_area(frame: np.ndarray) -> float:
    """Return the share of the area of uint8 `h w c` inside the rectangles around text."""
    image = fit_network(frame)
    boxes = np.zeros(image.shape[:2], np.uint8)
    for region in regions(probability(image)):
        if is_line(region, len(image)) or is_read(cut_out(image, region), len(image)):
            cv2.fillPoly(boxes, [cv2.boxPoints(region.rectangle).round().astype(np.int32)], 1)
    return float(boxes.mean())


def regions(likely: np.ndarray) -> list[Region]:
    """Return the regions that may contain text, from the probability of each pixel: float32 `h w`."""
    found, mask = [], np.zeros(likely.shape, np.uint8)
    contours, _ = cv2.findContours((likely > PIXEL).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for contour in contours:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        mask[:] = 0
        cv2.drawContours(mask, [contour], -1, 1, cv2.FILLED)
        if min(width, height) >= 3 and (mean := cv2.mean(likely, mask)[0]) >= REGION:
            margin = UNCLIP * width * height / (width + height)
            found.append(Region((centre, (width + margin, height + margin), angle), mean))
    return found


def is_line(region: Region, height: int) -> bool:
    """Return whether a region has the shape of a line of writing; `height` of the frame in pixels."""
    low, long = region.sides
    return long >= LONG * low and low <= HIGH * height and region.likely >= SURE


def cut_out(image: np.ndarray, region: Region) -> np.ndarray:
    """Cut a region out of a frame, rotated so that it is horizontal."""
    (x, y), (width, height), angle = region.rectangle
    if width < height:
        width, height, angle = height, width, angle - 90
    # A line is never upside down, but may rise or fall.
    angle = (angle + 90) % 180 - 90
    turn = cv2.getRotationMatrix2D((x, y), angle, 1.0)
    turn[:, 2] += (width / 2 - x, height / 2 - y)
    return cv2.warpAffine(image, turn, (max(round(width), 2), max(round(height), 2)), borderMode=cv2.BORDER_REPLICATE)


def is_read(line: np.ndarray, height: int) -> bool:
    """Return whether the reader can read a cut-out, uint8 `h w c`; `height` of the frame in pixels."""
    if len(line) > HIGHEST * height:
        return False
    width = int(np.clip(LINE * line.shape[1] / line.shape[0], NARROW, WIDE))
    likely = run("rec", cv2.resize(line, (width, LINE), interpolation=cv2.INTER_LINEAR))
    best, number = likely.max(axis=1), likely.argmax(axis=1)
    # CTC decoding: class 0 is no character, and repeated characters count once.
    begins = (number > 0) & (np.diff(number, prepend=0) != 0)
    return int(begins.sum()) >= CHARACTERS and float(best[begins].mean()) >= LEGIBLE


def fit_network(frame: np.ndarray) -> np.ndarray:
    """Scale a frame to about `SIDE` and to sides that are multiples of 32, as the detector needs them."""
    scale = SIDE / min(frame.shape[:2])
    height, width = (max(32, round(side * scale / 32) * 32) for side in frame.shape[:2])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def probability(image: np.ndarray) -> np.ndarray:
    """Return the probability that each pixel of uint8 `h w c` is text: float32 `h w`."""
    return run("det", image)[0]


def run(kind: str, image: np.ndarray) -> np.ndarray:
    """Return the output of the network `det` or `rec` for uint8 `h w c`."""
    signal = image[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    session = network(kind)
    (found,) = session.run(None, {session.get_inputs()[0].name: signal})
    return found[0]


@cache
def network(kind: str) -> onnxruntime.InferenceSession:
    """Load a network once per process, with one thread; nothing is downloaded."""
    models = sorted(path for path in (files("rapidocr") / "models").iterdir() if f"_{kind}_" in path.name)
    if not models:
        raise RuntimeError(f"rapidocr: found no network inside the package, expected models/*_{kind}_*.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(models[0]), options, providers=["CPUExecutionProvider"])


SCORE = PixelScore({"text": SHARE}, text)
