"""The settings of captioning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.caption.endpoint import Endpoint
from data_prep.caption.words import check_words

PROMPT = (
    "These are frames of one video, in order. Describe in two or three sentences what is seen: who or what, what "
    "happens, where, and how it is filmed. Describe only what is there. Do not speak of frames or of the video."
)


@dataclass(frozen=True)
class CaptionPolicy:
    """Who writes captions, from which frames, and which captions of a clip go into the shards.

    by: none, endpoint or model; origin: what the captions are called (None: the model's name); frames, side: see
    `frames.read_frames`; max_words: longer replies are refused; missing: only clips without a caption are asked about;
    give_up: unanswered requests in a row that stop the phase. url ... body: see `Endpoint`; batch, revision: see
    `Model`. use: origins in the order in which their captions go into the shards (None: all, those of the metadata
    first); camera, words: see `words.score_words`.
    """

    by: str = "none"
    model: str | None = None
    origin: str | None = None
    prompt: str = PROMPT
    frames: int = 8
    side: int = 448
    max_tokens: int = 300
    max_words: int = 200
    missing: bool = False
    give_up: int = 5
    url: str = "http://localhost:8000/v1"
    key: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    attempts: int = 5
    pause: float = 1.0
    body: Mapping[str, Any] | None = None
    batch: int = 8
    revision: str = "main"
    use: Sequence[str] | None = None
    camera: bool = False
    words: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.by not in ("none", "endpoint", "model"):
            raise ValueError(f"caption.by: found {self.by!r}, expected none, endpoint or model")
        if self.by != "none" and not self.model:
            raise ValueError("caption.model: found none, expected the name of a model or its folder")
        least = min(self.frames, self.side, self.max_tokens, self.max_words, self.give_up)
        if least < 1 or not self.prompt.strip():
            raise ValueError(
                f"caption: found frames={self.frames} side={self.side} max_tokens={self.max_tokens} "
                f"max_words={self.max_words} give_up={self.give_up} and a prompt of {len(self.prompt)} letters, "
                "expected at least 1 of each"
            )
        check_words(self.words or ())
        if self.by != "none":
            self.captioner(Path(), 1.0)

    @property
    def name(self) -> str:
        """What its captions are called."""
        return self.origin or self.settings["model"]

    def captioner(self, work: Path, timeout: float) -> Any:
        """Return the captioner for a work folder and seconds a batch; a mistake in the settings is a ValueError."""
        asked = {name: getattr(self, name) for name in ("model", "prompt", "frames", "side", "max_tokens")}
        if self.by == "endpoint":
            how = {name: getattr(self, name) for name in ("url", "key", "concurrency", "timeout", "attempts", "pause")}
            return Endpoint(**asked, **how, body=self.body)
        from data_prep.caption.model import Model  # which brings transformers

        return Model(**asked, work=work, batch=self.batch, revision=self.revision, timeout=timeout)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the replies, as far as they are known: the weights behind an endpoint are not."""
        names = ("by", "model", "prompt", "frames", "side", "max_tokens", "max_words")
        settings = {name: getattr(self, name) for name in names}
        if self.by == "endpoint":
            return settings | {"body": dict(self.body or {})}
        from data_prep.caption.model import config_hash

        here = {"model": Path(self.model).resolve().name} if Path(self.model).is_dir() else {"revision": self.revision}
        return settings | {"batch": self.batch, "config": config_hash(self.model)} | here

    @property
    def fingerprint(self) -> str:
        """A hash of the settings that determine the replies."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
