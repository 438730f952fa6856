"""A scene read back from the truth that lies beside a clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from videodiff.worlds import bouncing, collision, parabola, uniform
from videodiff.worlds.law import Law, read_law
from videodiff.worlds.scene import Scene


class TruthError(ValueError):
    """The truth of a clip that does not tell the state of a scene."""


def read_scene(truth: Mapping[str, Any], caption: str) -> Scene:
    """Return the scene that `Scene.truth` wrote; what it does not tell, or tells wrongly, is a TruthError."""
    try:
        walls, gravity = bool(truth.get("walls", True)), float(truth.get("gravity", 0.0))
        colour = tuple(truth["colour"])
        named = truth.get("world")
        return Scene(
            position=np.asarray(truth["position"], dtype=np.float64),
            velocity=np.asarray(truth["velocity"], dtype=np.float64),
            radius=np.asarray(truth["radius"], dtype=np.float64),
            colour=colour,
            fps=float(truth["fps"]),
            caption=caption,
            law=unnamed_law(walls, gravity, len(colour)) if named is None else read_law(named, walls, gravity),
        )
    except KeyError as error:
        raise TruthError(f"truth.{error.args[0]}: found nothing, expected the state of a scene") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise TruthError(f"truth: found no state of a scene ({error})") from error


def unnamed_law(walls: bool, gravity: float, balls: int) -> Law:
    """Return the law of a truth from before truths named their world, when there were four worlds."""
    if walls:
        law = bouncing.LAW
    elif gravity:
        law = parabola.LAW
    else:
        law = collision.LAW if balls > 1 else uniform.LAW
    return replace(law, walls=walls, gravity=gravity)
