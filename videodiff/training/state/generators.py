"""The state of this process's random generators as tensors.

Draws of this project are keyed by seed, step and position and do not need them. Draws of a user's own network or
callback continue where they stopped, if the number of processes is the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def generators() -> dict[str, Tensor]:
    """Return the states of the generators of torch, CUDA, numpy and Python."""
    _, words, following = random.getstate()
    _, keys, place, cached, normal = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words),
        "python_normal": torch.tensor([] if following is None else [following], dtype=torch.float64),
        "numpy": torch.tensor([*map(int, keys), place, cached]),
        "numpy_normal": torch.tensor([normal], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_generators(states: Mapping[str, Tensor]) -> None:
    """Set these states; the state of a CUDA device that this machine lacks is left out."""
    torch.set_rng_state(states["torch"])
    random.setstate((3, tuple(states["python"].tolist()), next(iter(states["python_normal"].tolist()), None)))
    *keys, place, cached = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), place, cached, states["numpy_normal"].item()))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
