"""The settings of making clips."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from data_prep.cut.encode import EncodePolicy
from data_prep.cut.scenes import fit_durations
from data_prep.score.pixel_score import DEFAULT


@dataclass(frozen=True)
class CutPolicy:
    """Which parts of a video become clips: its `spans` (all of it without spans), or the `scenes` inside its spans.

    detector, threshold, min_scene: see `scenes.find_scenes`; scenes over `maximum` seconds are split into equal parts,
    those under `minimum` left out. Spans are cut as they are.
    """

    by: str = "spans"
    detector: str = "adaptive"
    threshold: float | None = None
    min_scene: float = 0.6
    minimum: float = 2.0
    maximum: float = 16.0

    def __post_init__(self) -> None:
        if self.by not in ("spans", "scenes") or self.detector not in ("adaptive", "content"):
            raise ValueError(
                f"cut: found by={self.by} detector={self.detector}, expected spans or scenes, adaptive or content"
            )
        fit_durations([], self.minimum, self.maximum)


@dataclass(frozen=True)
class MakePolicy:
    """How clips are made of a video.

    crop: cut off letterbox bars; score: if false, only the scores of the geometry are computed; audio: `keep` writes
    the sound of each clip beside it, as m4a; scores: files of `data_prep/score` with a score of pixels.
    """

    cut: CutPolicy = field(default_factory=CutPolicy)
    encode: EncodePolicy = field(default_factory=EncodePolicy)
    crop: bool = True
    score: bool = True
    audio: str = "drop"
    scores: tuple[str, ...] = DEFAULT

    def __post_init__(self) -> None:
        if self.audio not in ("drop", "keep"):
            raise ValueError(f"audio: found {self.audio!r}, expected drop or keep")

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings that determine the bytes and the scores of a clip, as the json of each clip says them."""
        found = self.to_json()
        # Clips that were made before scores could be chosen name none.
        return found if self.scores != DEFAULT else {key: value for key, value in found.items() if key != "scores"}

    def to_json(self) -> dict[str, Any]:
        """Return all settings as JSON has them: a tuple is a list there."""
        return json.loads(json.dumps(asdict(self)))
