"""A scene read back from the truth that lies beside a clip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from videodiff.worlds import bouncing, collision, parabola, uniform
from videodiff.worlds.law import Law, number, read_law, shown, texts
from videodiff.worlds.scene import PALETTE, Scene


class TruthError(ValueError):
    """The truth of a clip that does not tell the state of a scene."""


def read_scene(truth: Mapping[str, Any], caption: str) -> Scene:
    """Return the scene that `Scene.truth` wrote; what it does not tell, or tells wrongly, is a TruthError."""
    try:
        walls, gravity = bool(truth.get("walls", True)), number(truth.get("gravity", 0.0), "gravity")
        colour = texts(truth["colour"], "colour")
        if unknown := [name for name in colour if name not in PALETTE]:
            raise ValueError(f"colour: found {unknown[0]!r}, expected some of {', '.join(PALETTE)}")
        named, position = truth.get("world"), numbers(truth, "position", (None, len(colour), 2))
        return Scene(
            position=position,
            velocity=numbers(truth, "velocity", position.shape),
            radius=numbers(truth, "radius", (len(colour),), least=0.0),
            colour=colour,
            fps=float(numbers(truth, "fps", (), least=0.0)),
            caption=caption,
            law=unnamed_law(walls, gravity, len(colour)) if named is None else read_law(named, walls, gravity),
        )
    except KeyError as error:
        raise TruthError(f"truth.{error.args[0]}: found nothing, expected the state of a scene") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise TruthError(f"truth: found no state of a scene ({error})") from error


def numbers(truth: Mapping[str, Any], name: str, shape: tuple[int | None, ...], least: float = -math.inf) -> np.ndarray:
    """Return finite numbers above `least` of a shape, in which None stands for any size above 0."""
    found = np.asarray(truth[name], dtype=np.float64)
    fits = len(found.shape) == len(shape) and all(
        size == wanted or (wanted is None and size) for size, wanted in zip(found.shape, shape, strict=True)
    )
    if not fits or not (np.isfinite(found) & (found > least)).all():
        sizes = " x ".join("frames" if size is None else str(size) for size in shape) or "1"
        above = f" above {least:g}" * (least > -math.inf)
        raise ValueError(f"{name}: found {shown(truth[name])}, expected {sizes} finite numbers{above}")
    return found


def unnamed_law(walls: bool, gravity: float, balls: int) -> Law:
    """Return the law of a truth from before truths named their world, when there were four worlds."""
    if walls:
        law = bouncing.LAW
    elif gravity:
        law = parabola.LAW
    else:
        law = collision.LAW if balls > 1 else uniform.LAW
    return replace(law, walls=walls, gravity=gravity)
