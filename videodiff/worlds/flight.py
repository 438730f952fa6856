"""Free flight, walls and elastic collision: discs followed from contact to contact in closed form, never by steps."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from videodiff.worlds.law import Law
from videodiff.worlds.scene import SIDE

# Discs with room to fly have fewer contacts than so many at once, and so many more a second.
AT_ONCE, A_SECOND = 100, 1000


class CrampedError(ValueError):
    """Discs without room to fly: too large for the walls or for each other, they would touch for ever."""


def advance(
    law: Law, position: np.ndarray, velocity: np.ndarray, radius: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Follow discs by a law from their state at time 0.

    position, velocity: (n, 2); radius: (n,); times: increasing, from 0. Returns both as (t, n, 2).
    """
    x, v, _ = fly(position, velocity, radius, times, law.walls)
    x[..., 1] += law.gravity * times[:, None] ** 2 / 2
    v[..., 1] += law.gravity * times[:, None]
    return x, v


def overlap(position: np.ndarray, radius: np.ndarray) -> bool:
    """Tell whether any two discs at `position` (n, 2) overlap."""
    pairs = combinations(range(len(radius)), 2)
    return any(np.linalg.norm(position[i] - position[j]) < radius[i] + radius[j] for i, j in pairs)


def fly(
    position: np.ndarray, velocity: np.ndarray, radius: np.ndarray, times: np.ndarray, walls: bool = True
) -> tuple[np.ndarray, np.ndarray, float]:
    """Follow discs of equal density from contact to contact.

    position, velocity: (n, 2); radius: (n,); times: increasing, from 0. Returns both as (t, n, 2) and the time of the
    first contact, infinite where there is none. CrampedError if contacts come without end.
    """
    position, velocity, mass = position.copy(), velocity.copy(), radius**2
    now, contacts, first, positions, velocities = 0.0, 0, np.inf, [], []
    for time in times:
        while True:
            wait, contact = next_contact(position, velocity, radius, walls)
            if now + wait > time:
                break
            position += wait * velocity
            bounce(position, velocity, mass, contact)
            now, contacts = now + wait, contacts + 1
            first = min(first, now)
            if contacts > AT_ONCE + A_SECOND * now:
                raise CrampedError(f"discs: found {contacts} contacts in {now:g} s, expected discs with room to fly")
        position += (time - now) * velocity
        now = time
        positions.append(position.copy())
        velocities.append(velocity.copy())
    return np.stack(positions), np.stack(velocities), first


def next_contact(
    position: np.ndarray, velocity: np.ndarray, radius: np.ndarray, walls: bool = True
) -> tuple[float, tuple[int, ...]]:
    """Return the time until the next contact and what touches: (disc, axis, sign) for a wall, (i, j) for two discs."""
    best, contact = np.inf, ()
    for disc, axis in np.ndindex(position.shape) if walls else ():
        v = velocity[disc, axis]
        if v != 0.0:
            wall = SIDE - radius[disc] if v > 0 else radius[disc]
            wait = max((wall - position[disc, axis]) / v, 0.0)
            if wait < best:
                best, contact = wait, (disc, axis, int(np.sign(v)))
    for i, j in combinations(range(len(radius)), 2):
        gap, rate = position[i] - position[j], velocity[i] - velocity[j]
        a, b, c = rate @ rate, gap @ rate, gap @ gap - (radius[i] + radius[j]) ** 2
        if b < 0 and b * b - a * c > 0:
            wait = max((-b - np.sqrt(b * b - a * c)) / a, 0.0)
            if wait < best:
                best, contact = wait, (i, j)
    return best, contact


def bounce(position: np.ndarray, velocity: np.ndarray, mass: np.ndarray, contact: tuple[int, ...]) -> None:
    """Change the velocities of what touches, in place: reflection at a wall, an elastic collision of two discs."""
    if len(contact) == 3:
        disc, axis, _ = contact
        velocity[disc, axis] *= -1
        return
    i, j = contact
    normal = (position[i] - position[j]) / np.linalg.norm(position[i] - position[j])
    closing = (velocity[i] - velocity[j]) @ normal
    velocity[i] -= 2 * mass[j] / (mass[i] + mass[j]) * closing * normal
    velocity[j] += 2 * mass[i] / (mass[i] + mass[j]) * closing * normal
