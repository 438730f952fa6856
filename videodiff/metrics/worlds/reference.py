"""Reference predictors for every table: each takes a scene and returns its predicted scene.

All see the same as a model: positions and radii parsed from the rendered given frames, never the exact state. They
differ in how much of the law they know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from videodiff.metrics.worlds.captions import phrases
from videodiff.metrics.worlds.parsing import track, track_of
from videodiff.metrics.worlds.physics import motion, norm
from videodiff.words import count_text
from videodiff.worlds.flight import advance
from videodiff.worlds.scene import Scene, render

Predictor = Callable[..., Scene]


def static(scene: Scene, given: int = 3, size: int = 64) -> Scene:
    """Hold the last given frame."""
    position, _, _ = parsed(scene, given, size)
    still = np.broadcast_to(position, scene.position.shape)
    return predicted(scene, given, still, np.zeros_like(scene.velocity))


def constant_velocity(scene: Scene, given: int = 3, size: int = 64) -> Scene:
    """Continue with the velocity of the given frames, through walls and other balls: inertia alone."""
    position, velocity, _ = parsed(scene, given, size)
    after = (np.arange(len(scene.position)) - (given - 1))[:, None, None] / scene.fps
    return predicted(scene, given, position + after * velocity, np.broadcast_to(velocity, scene.velocity.shape))


def law(scene: Scene, given: int = 3, size: int = 64) -> Scene:
    """Continue by the exact law from the given frames, with the scene's walls, contacts and gravity."""
    return follow(scene, given, size, lambda speed: speed)


def mean_speed(scene: Scene, given: int = 3, size: int = 64) -> Scene:
    """Use the law and the direction, but the middle of the training range for the speed."""
    low, high = scene.law.speeds
    return follow(scene, given, size, lambda speed: np.full_like(speed, (low + high) / 2))


def clamped(scene: Scene, given: int = 3, size: int = 64) -> Scene:
    """Use the law, but clamp speeds to the training range: a model that reasons by cases (PhyWorld)."""
    return follow(scene, given, size, lambda speed: np.clip(speed, *scene.law.speeds))


PREDICTORS: dict[str, Predictor] = {
    "last frame held": static,
    "training-mean speed": mean_speed,
    "speed clamped to training": clamped,
    "constant velocity": constant_velocity,
    "law from the given frames": law,
}


def measure(predictor: Predictor, scene: Scene, given: int = 3, size: int = 64) -> dict[str, float]:
    """Measure one predictor on one scene; states are compared directly."""
    return motion(track_of(predictor(scene, given, size)), scene, given)


def parsed(scene: Scene, given: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return position and velocity (n, 2) in the last given frame and radius (n,), read from the rendered given frames.

    Straight lines are fitted, or parabolas of known gravity; a single given frame has no velocity.
    """
    first = replace(scene, position=scene.position[:given], velocity=scene.velocity[:given])
    seen = track(render(first, size), scene.colour)
    if not seen.visible.all():
        raise ValueError(
            f"scene: found a ball that is not seen in the {count_text(given, 'given frame')}, expected every ball in "
            "view"
        )
    time = (np.arange(given) - (given - 1)) / scene.fps
    straight = seen.position.copy()
    straight[..., 1] -= scene.law.gravity * time[:, None] ** 2 / 2
    centred = time - time.mean()
    slope = np.tensordot(centred, straight, axes=1) / (centred @ centred) if given > 1 else np.zeros_like(straight[0])
    return straight.mean(axis=0) - time.mean() * slope, slope, seen.radius().mean(axis=0)


def follow(scene: Scene, given: int, size: int, pace: Callable[[np.ndarray], np.ndarray]) -> Scene:
    """Advance the parsed state by the law, each ball as if launched at `pace(speed)` in its own direction."""
    position, velocity, radius = parsed(scene, given, size)
    fallen = np.array([0.0, scene.law.gravity * (given - 1) / scene.fps])
    velocity = velocity - fallen
    speed = norm(velocity)
    # A ball at rest has no direction, so it takes the direction word of its caption.
    said = np.stack([phrase.heading for phrase in phrases(scene.caption, scene.law.grammar)])
    direction = np.where(speed[:, None] > 1e-2, velocity / np.maximum(speed, 1e-2)[:, None], said)
    times = np.arange(len(scene.position) - given + 1) / scene.fps
    x, v = advance(scene.law, position, pace(speed)[:, None] * direction + fallen, radius, times)
    lead = [(given - 1, 0), (0, 0), (0, 0)]
    return predicted(scene, given, np.pad(x, lead), np.pad(v, lead))


def predicted(scene: Scene, given: int, position: np.ndarray, velocity: np.ndarray) -> Scene:
    """Return the scene with its true given frames and the predicted ones after them."""
    known = (np.arange(len(scene.position)) < given)[:, None, None]
    position, velocity = np.where(known, scene.position, position), np.where(known, scene.velocity, velocity)
    return replace(scene, position=position, velocity=velocity)
