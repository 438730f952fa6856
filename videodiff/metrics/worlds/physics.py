"""How far a sampled clip deviates from the law of its world.

All measures use world units and seconds, on the predicted frames in which every true ball is completely in view. A ball
that is not seen counts at its last seen position: to vanish costs as much as to stand still, never less.
"""

from __future__ import annotations

import numpy as np

from videodiff.metrics.worlds.parsing import Track, track, track_phyworld
from videodiff.words import count_text
from videodiff.worlds.scene import SIDE, Scene

# PhyWorld's least speed for a division, so that a ball at rest has a scale too.
SLOWEST = 0.5


def continuation(frames: np.ndarray, scene: Scene, given: int = 3) -> dict[str, float]:
    """Measure a clip uint8 `t h w c` that continues the first `given` frames of a scene.

    Returns the numbers of `motion`, and PhyWorld's own `phyworld_velocity_error` if the world of the scene has it.
    """
    numbers = motion(track(frames), scene, given)
    if "phyworld" in scene.law.measures:
        numbers["phyworld_velocity_error"] = phyworld_velocity_error(frames, scene, given)
    return numbers


def motion(tracked: Track, scene: Scene, given: int = 3) -> dict[str, float]:
    """Measure a track against the truth.

    velocity_error: |mean v - true mean v| over the frames, mean over balls (PhyWorld's, as a vector norm);
    velocity_error_per_frame: mean |v - true v|; position_error, position_error_last: units; momentum_error,
    energy_error: fractions, mass = radius squared, scaled by the truth's first frame; shape_drift: (largest - smallest
    radius) / true radius; permanence_share: frames in which exactly the right balls are seen. Where the world has
    it, also velocity, momentum and energy error before and after the contact.
    """
    if len(tracked.position) != len(scene.position):
        raise ValueError(f"frames: found {len(tracked.position)}, expected the scene's {len(scene.position)}")
    mine, frames = tracked.of(scene.colour), scored_frames(scene, given)
    x, true_x = held(mine, scene, given)[frames], scene.position[frames]
    v, true_v = np.diff(x, axis=0) * scene.fps, np.diff(true_x, axis=0) * scene.fps
    off, radius = norm(x - true_x), mine.radius()[frames]
    right = (tracked.count()[frames] == len(scene.colour)) & mine.visible[frames].all(axis=1)
    numbers = {
        "velocity_error": velocity_error(v, true_v),
        "velocity_error_per_frame": float(norm(v - true_v).mean()),
        "position_error": float(off.mean()),
        "position_error_last": float(off[-1].mean()),
        "momentum_error": momentum_error(v, true_v, scene),
        "energy_error": energy_error(v, true_v, scene),
        "shape_drift": float(((radius.max(axis=0) - radius.min(axis=0)) / scene.radius).mean()),
        "permanence_share": float(right.mean()),
    }
    if "contact" in scene.law.measures:
        numbers |= around_contact(v, true_v, scene, frames)
    return numbers


def around_contact(v: np.ndarray, true_v: np.ndarray, scene: Scene, frames: np.ndarray) -> dict[str, float]:
    """Measure velocity, momentum and energy separately before and after the contact; its own interval is left out."""
    turns = np.flatnonzero((np.abs(np.diff(scene.velocity[frames], axis=0)) > 1e-6).any(axis=(1, 2)))
    contact = int(turns[0]) if len(turns) else len(v)
    measures = {"velocity": lambda a, b, _: velocity_error(a, b), "momentum": momentum_error, "energy": energy_error}
    return {
        f"{name}_error_{when}": measure(v[part], true_v[part], scene)
        for when, part in (("before", slice(0, contact)), ("after", slice(contact + 1, None)))
        for name, measure in measures.items()
        if len(v[part])
    }


def velocity_error(v: np.ndarray, true_v: np.ndarray) -> float:
    """Return |mean v - true mean v| over the frames, mean over balls; both (t, n, 2)."""
    return float(norm(v.mean(axis=0) - true_v.mean(axis=0)).mean())


def momentum_error(v: np.ndarray, true_v: np.ndarray, scene: Scene) -> float:
    """Return the mean |p - true p| as a fraction of the sum of the balls' |momentum| in the first frame."""
    mass = scene.radius**2
    return float(norm(np.tensordot(v - true_v, mass, axes=(1, 0))).mean() / (mass * first_speed(scene)).sum())


def energy_error(v: np.ndarray, true_v: np.ndarray, scene: Scene) -> float:
    """Return the mean |E - true E| as a fraction of the kinetic energy in the first frame."""
    mass = scene.radius**2
    energy, true_energy = (v**2).sum(axis=-1) @ mass, (true_v**2).sum(axis=-1) @ mass
    return float(np.abs(energy - true_energy).mean() / (mass * first_speed(scene) ** 2).sum())


def first_speed(scene: Scene) -> np.ndarray:
    """Return the speed (n,) of each ball in the first frame, at least SLOWEST."""
    return np.maximum(norm(scene.velocity[0]), SLOWEST)


def norm(vectors: np.ndarray) -> np.ndarray:
    """Return the length of vectors (..., 2)."""
    return np.linalg.norm(vectors, axis=-1)


def in_view(scene: Scene, given: int) -> np.ndarray:
    """Return the indices of the predicted frames up to the first in which a ball is not completely in view."""
    # A ball that touches a wall may stand a rounding error outside.
    reach = scene.radius[:, None] - 1e-4
    inside = ((scene.position >= reach) & (scene.position <= SIDE - reach)).all(axis=(1, 2))
    out = np.flatnonzero(~inside[given:])
    return np.arange(given, given + out[0] if len(out) else len(scene.position))


def scored_frames(scene: Scene, given: int) -> np.ndarray:
    """Return the indices of the frames that are measured: at least two."""
    found = in_view(scene, given)
    if len(found) < 2:
        raise ValueError(
            f"scene: found {count_text(len(found), 'predicted frame')} with every ball in view after {given} given "
            "ones, expected at least 2 to measure a velocity"
        )
    return found


def held(mine: Track, scene: Scene, given: int) -> np.ndarray:
    """Return positions (t, n, 2) without gaps: the truth in the given frames, then each ball's last seen position."""
    position = scene.position.copy()
    for k in range(given, len(position)):
        position[k] = np.where(mine.visible[k][:, None], mine.position[k], position[k - 1])
    return position


def phyworld_velocity_error(frames: np.ndarray, scene: Scene, given: int = 3) -> float:
    """Return PhyWorld's velocity error as its evaluate.py computes it, in its coordinates and with its parser.

    One disc: |mean vx - v0|. Two discs: |mean vx - true mean vx|, averaged over both, before and after the contact; in
    all frames if they do not meet in those that are measured.
    """
    where = scored_frames(scene, given)
    x = track_phyworld(frames[where], scene.colour)[0][..., 0]
    vx, true_vx = np.diff(x, axis=0) * scene.fps, np.diff(scene.position[where, :, 0], axis=0) * scene.fps
    if len(scene.colour) == 1:
        return float(abs(vx.mean() - scene.velocity[0, 0, 0]))
    jumps = np.flatnonzero((np.abs(np.diff(true_vx, axis=0)) > 0.1).any(axis=1))
    contact = int(jumps[0]) + 1 if len(jumps) else len(true_vx)
    parts = [part for part in (slice(0, contact), slice(contact + 1, None)) if len(true_vx[part])]
    return float(np.mean([np.abs(vx[part].mean(axis=0) - true_vx[part].mean(axis=0)).mean() for part in parts]))
