"""Similarity of captions and frames by CLIP, and how well the frames look by a head on the same features."""

from __future__ import annotations

from pathlib import Path

from data_prep.rate.model_score import ModelScore, Network
from data_prep.score.pixel_score import Scale


def load(path: Path, device: str, aesthetic: Path | None = None) -> Network:
    """Return the network; aesthetic: the file of the head."""
    from data_prep.rate.network import ClipScores

    return ClipScores(path, aesthetic, device)


MODEL = ModelScore(
    {"clip_similarity": Scale("", -1.0, 1.0)},
    load,
    parts={"aesthetic": {"aesthetic": Scale("points")}},
    reads_captions=True,
)
