"""How likely a frame is not safe for work, by an image classifier with a label `nsfw`."""

from __future__ import annotations

from pathlib import Path

from data_prep.rate.model_score import ModelScore, Network
from data_prep.score.pixel_score import SHARE


def load(path: Path, device: str) -> Network:
    """Return the network, which looks at no caption."""
    from data_prep.rate.network import NsfwScores

    network = NsfwScores(path, device)
    return lambda frames, captions: network(frames)


MODEL = ModelScore({"nsfw": SHARE}, load)
