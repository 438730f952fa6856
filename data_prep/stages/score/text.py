"""Text: the area that burnt-in text covers, by the text detector that ships inside the package rapidocr (PP-OCR)."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import cv2
import numpy as np
import onnxruntime

# Probability above which a pixel is text, mean probability above which a region is, and by how much the network draws
# regions too small: the constants of DB post-processing (Liao et al. 2020, arXiv 1911.08947).
PIXEL, REGION, UNCLIP = 0.3, 0.6, 1.6
# Levels a pixel of mean gradient below which a region has no strokes: fog and smooth ground look like text to the
# detector, which was trained on documents.
STROKES = 8.0
# Frames a clip, in the middle of its halves, and the short side that the detector sees: the cost grows with its square.
LOOKS, SIDE = 2, 192


def text(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Return the largest share of the area of a frame of uint8 `t h w c` that text covers, 0 to 1."""
    places = (np.arange(LOOKS) + 0.5) / LOOKS * (len(frames) - 1)
    images = [fit_network(frames[number]) for number in np.unique(places.round().astype(int))]
    return {"text": max(text_area(probability(image), edges(image)) for image in images)}


def text_area(likely: np.ndarray, edge: np.ndarray) -> float:
    """Return the share of the area inside the boxes around regions of likely text in which there are edges."""
    boxes, mask = np.zeros(likely.shape, np.uint8), np.zeros(likely.shape, np.uint8)
    contours, _ = cv2.findContours((likely > PIXEL).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for contour in contours:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        mask[:] = 0
        cv2.drawContours(mask, [contour], -1, 1, cv2.FILLED)
        if min(width, height) < 3 or cv2.mean(likely, mask)[0] < REGION or cv2.mean(edge, mask)[0] < STROKES:
            continue
        margin = UNCLIP * width * height / (width + height)
        corners = cv2.boxPoints((centre, (width + margin, height + margin), angle))
        cv2.fillPoly(boxes, [corners.round().astype(np.int32)], 1)
    return float(boxes.mean())


def fit_network(frame: np.ndarray) -> np.ndarray:
    """Scale a frame to about `SIDE` and to sides that are multiples of 32, as the network needs them."""
    scale = SIDE / min(frame.shape[:2])
    height, width = (max(32, round(side * scale / 32) * 32) for side in frame.shape[:2])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def probability(image: np.ndarray) -> np.ndarray:
    """Return how likely each pixel of uint8 `h w c` is text: float32 `h w`."""
    signal = image[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    session = detector()
    (found,) = session.run(None, {session.get_inputs()[0].name: signal})
    return found[0, 0]


def edges(image: np.ndarray) -> np.ndarray:
    """Return the gradient of the luma in levels a pixel, float32 `h w`."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.magnitude(*(cv2.Sobel(grey, cv2.CV_32F, *axes, scale=1 / 8) for axes in ((1, 0), (0, 1))))


@cache
def detector() -> onnxruntime.InferenceSession:
    """Load the network once a process, on one thread; nothing is fetched."""
    models = sorted(path for path in (files("rapidocr") / "models").iterdir() if "_det_" in path.name)
    if not models:
        raise RuntimeError("rapidocr: found no text detector inside the package, expected models/*_det_*.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(models[0]), options, providers=["CPUExecutionProvider"])
