"""Choose the shape and frame rate of a clip: those of the training, unless others are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videodiff.data.loader.trained import NEAR, Trained, read_trained, usual
from videodiff.data.samples.manifest import Manifest
from videodiff.data.video.encode import check_rate

SIDES = ("frames", "height", "width")


def shapes_of_run(run: Path, data: Mapping[str, Any]) -> list[Trained]:
    """Return the shapes and frame rates that a run trains on.

    An old run keeps no list of them; then they come from its configuration `data` and its dataset.
    """
    found = read_trained(run)
    if found is not None:
        return found
    stages = data.get("stages") or [{"buckets": data.get("buckets")}]
    shapes = stages[-1].get("buckets") or [{name: data[name] for name in SIDES}]
    found = []
    for rule in shapes:
        strides = tuple(rule.get("strides") or (data["stride"],))
        shape = (rule[name] for name in SIDES)
        found.append(Trained(0, *shape, strides, 1 / len(shapes), rates_at(data.get("root") or ":", strides)))
    return found


def rates_at(root: str, strides: Sequence[int]) -> dict[float, float]:
    """Return the frame rates of a dataset, or none if it is out of reach."""
    # The address comes from a run's folder, which may be a stranger's: fetch nothing from it.
    if ":" in root and not Path(root).is_dir():
        return {}
    try:
        rates, count = np.unique(Manifest.load(root).column("fps"), return_counts=True)
    except (OSError, ValueError):
        return {}
    pairs = sorted(zip(count.tolist(), rates.tolist(), strict=True), reverse=True)
    return {rate / strides[0]: number / count.sum() for number, rate in pairs}


def choose_shape(trained: Sequence[Trained], asked: Mapping[str, int]) -> tuple[int, int, int]:
    """Return the shape `t h w` to make: the most usual trained one that fits `asked`, else one changed to fit."""
    matching = [one for one in trained if all(getattr(one, name) == value for name, value in asked.items())]
    one = usual(matching or trained)
    frames, height, width = (asked.get(name, getattr(one, name)) for name in SIDES)
    return frames, height, width


def least_frames(total: int, most: int, patch: int, codec: Any) -> int:
    """Return the least number of frames from `total` up to `most` that codec and patch take, else `most`."""

    def fits(frames: int) -> bool:
        try:
            return codec.latent_frames(frames) % patch == 0
        except ValueError:
            return False

    return next((frames for frames in range(total, most) if fits(frames)), most)


def unlike_training(trained: Sequence[Trained], shape: tuple[int, int, int]) -> str | None:
    """Return a remark if no clip of the training had this shape."""
    if shape in [one.shape for one in trained]:
        return None
    known = ", ".join(dict.fromkeys(" x ".join(map(str, one.shape)) for one in trained))
    return f"{' x '.join(map(str, shape))} is no shape of the training, which had {known}"


def unlike_rate(trained: Sequence[Trained], fps: float) -> str | None:
    """Return a remark if every clip of the training had a lower rate, or every one a higher one."""
    clips = [one for one in trained if one.frames > 1] or trained
    rates = sorted(rate for one in clips for rate in one.rates)
    if not rates or (rates[0] <= fps * NEAR and fps <= rates[-1] * NEAR):
        return None
    known = " to ".join(dict.fromkeys(f"{rate:g}" for rate in (rates[0], rates[-1])))
    return f"{fps:g} frames a second is no rate of the training, which had {known}"


def choose_rate(
    asked: float | None, trained: Sequence[Trained], shape: tuple[int, int, int], given: float | None = None
) -> float:
    """Return the frames a second of a clip: as asked, as trained, or a given video's rate over the stride.

    Nobody is asked for the rate of a single frame: it is the one that the network has met most often.
    """
    if asked is not None:
        check_rate(asked)
        return float(asked)
    # The latest of the same shape, else of the same number of frames.
    wanted = (shape, shape[:1])
    alike = (one for part in wanted for one in reversed(trained) if one.shape[: len(part)] == part)
    one = next(alike, usual(trained))
    if shape[0] == 1 and one.rates:
        return most_frequent_rate(one)
    if one.rate is not None:
        return one.rate
    if given is not None:
        return given / one.strides[0]
    rates = ", ".join(f"{rate:g} ({share:.0%})" for rate, share in list(one.rates.items())[:5])
    trained_on = f"clips of {rates}" if rates else "a dataset that cannot be read now"
    example = f"; ask for one: fps={most_frequent_rate(one):g}" if rates else ""
    raise ValueError(f"fps: found null, expected frames a second, as this run was trained on {trained_on}{example}")


def most_frequent_rate(one: Trained) -> float:
    """Return the frame rate that all clips of a shape have, else the most frequent one."""
    return one.rate or next(iter(one.rates))
